//! Sample-rate conversion between any two rates, streaming, with a known delay.

use audioadapter_buffers::direct::InterleavedSlice;
use rubato::{
    Adjustable, Async, FixedAsync, Resampler as _, Resizable, SincInterpolationParameters,
    SincInterpolationType, WindowFunction,
};

/// Filter length in samples of the lower of the two rates: 2.7 ms of delay at 24 kHz.
const TAPS: f64 = 128.0;
/// Longest stretch handed to the filter at once, in input samples.
const CHUNK: usize = 1024;
/// How far an adjustable resampler may leave its nominal ratio.
pub const MAX_ADJUSTMENT: f64 = 0.01;
/// Rates outside of this range are refused: no sound device or file has them.
const RATES: std::ops::RangeInclusive<u32> = 1_000..=1_536_000;

/// A conversion that can't be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ResampleError {
    /// One of the rates makes no sense.
    #[error("a sample rate of {0} Hz was given; rates from 1000 to 1536000 Hz can be converted")]
    Rate(u32),
    /// The filter refused its input; this is a defect of the program, not of the sound.
    #[error("the resampling filter failed: {0}")]
    Filter(String),
}

/// Converts one mono stream from one rate to another, any number of samples at a time.
///
/// Output comes as soon as the filter has seen enough: the stream is `delay()` output samples late and nothing is
/// held back beyond that. Equal rates pass through untouched (and without delay) unless the ratio is adjustable.
pub struct Resampler {
    filter: Option<Box<Async<f32>>>,
    ratio: f64,
    delay: f64,
    scratch: Vec<f32>,
    taken: u64,
    given: u64,
}

impl Resampler {
    /// A converter with a fixed ratio.
    ///
    /// # Errors
    /// `ResampleError::Rate` when a rate is out of range.
    pub fn new(from: u32, to: u32) -> Result<Self, ResampleError> {
        Self::build(from, to, from != to)
    }

    /// A converter whose ratio can be nudged by `adjust`, to follow a clock that drifts.
    ///
    /// # Errors
    /// `ResampleError::Rate` when a rate is out of range.
    pub fn adjustable(from: u32, to: u32) -> Result<Self, ResampleError> {
        Self::build(from, to, true)
    }

    fn build(from: u32, to: u32, filtered: bool) -> Result<Self, ResampleError> {
        for rate in [from, to] {
            if !RATES.contains(&rate) {
                return Err(ResampleError::Rate(rate));
            }
        }
        let ratio = f64::from(to) / f64::from(from);
        let mut this = Self { filter: None, ratio, delay: 0.0, scratch: Vec::new(), taken: 0, given: 0 };
        if filtered {
            let taps = ((TAPS / ratio.min(1.0) / 8.0).ceil() * 8.0) as usize;
            let parameters = SincInterpolationParameters::new(taps, WindowFunction::BlackmanHarris2)
                .oversampling_factor(256)
                .interpolation(SincInterpolationType::Cubic);
            let filter =
                Async::new_sinc(ratio, 1.0 + MAX_ADJUSTMENT, &parameters, CHUNK, 1, FixedAsync::Input)
                    .map_err(filter_error)?;
            // The filter is centred on half its length; rubato takes its first output one output sample in.
            this.delay = taps as f64 / 2.0 * ratio - 1.0;
            this.scratch = vec![0.0; filter.output_frames_max() + 16];
            this.filter = Some(Box::new(filter));
        }
        Ok(this)
    }

    /// How late the output is, in output samples (fractional: the filter sits between samples).
    pub fn delay(&self) -> f64 {
        self.delay
    }

    /// Output samples per input sample, nominally.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    /// Sets the ratio to `nominal * (1 + relative)`, reached smoothly during the next call of `process`.
    pub fn adjust(&mut self, relative: f64) {
        if let Some(filter) = &mut self.filter {
            let limit = MAX_ADJUSTMENT * 0.95;
            let relative = 1.0 + relative.clamp(-limit, limit);
            // Within the limit, so it can't be refused.
            let _ = filter.set_resample_ratio_relative(relative, true);
        }
    }

    /// Converts `input` and appends what comes out to `output`; allocates only where `output` must grow.
    ///
    /// # Errors
    /// `ResampleError::Filter` when the filter fails.
    pub fn process(&mut self, input: &[f32], output: &mut Vec<f32>) -> Result<(), ResampleError> {
        self.taken += input.len() as u64;
        let Some(filter) = &mut self.filter else {
            output.extend_from_slice(input);
            self.given += input.len() as u64;
            return Ok(());
        };
        for chunk in input.chunks(CHUNK) {
            filter.set_chunk_size(chunk.len()).map_err(filter_error)?;
            let source = InterleavedSlice::new(chunk, 1, chunk.len()).map_err(filter_error)?;
            let room = self.scratch.len();
            let mut sink = InterleavedSlice::new_mut(&mut self.scratch, 1, room).map_err(filter_error)?;
            let (_, made) = filter.process_into_buffer(&source, &mut sink, None).map_err(filter_error)?;
            output.extend_from_slice(&self.scratch[..made]);
            self.given += made as u64;
        }
        Ok(())
    }

    /// Pushes out what the filter still holds and makes the converter ready for a new stream.
    ///
    /// The whole stream is then `round(input * to / from)` samples long, after its first `round(delay())`.
    ///
    /// # Errors
    /// `ResampleError::Filter` when the filter fails.
    pub fn flush(&mut self, output: &mut Vec<f32>) -> Result<(), ResampleError> {
        if self.filter.is_some() {
            let wanted = (self.taken as f64 * self.ratio).round() as u64 + self.delay.round() as u64;
            let start = output.len();
            let missing = wanted.saturating_sub(self.given) as usize;
            let silence = [0.0; 256];
            while output.len() - start < missing {
                self.process(&silence, output)?;
            }
            output.truncate(start + missing);
        }
        self.reset();
        Ok(())
    }

    /// Forgets the stream so far.
    pub fn reset(&mut self) {
        if let Some(filter) = &mut self.filter {
            filter.reset();
        }
        (self.taken, self.given) = (0, 0);
    }
}

/// Converts a whole sound: `round(len * to / from)` samples, aligned with the input.
///
/// # Errors
/// `ResampleError::Rate` when a rate is out of range.
pub fn resample(input: &[f32], from: u32, to: u32) -> Result<Vec<f32>, ResampleError> {
    let mut resampler = Resampler::new(from, to)?;
    let skip = resampler.delay().round() as usize;
    let expected = (input.len() as f64 * resampler.ratio()).round() as usize;
    let mut output = Vec::with_capacity(expected + skip + CHUNK);
    resampler.process(input, &mut output)?;
    resampler.flush(&mut output)?;
    output.drain(..skip.min(output.len()));
    Ok(output)
}

fn filter_error(error: impl std::fmt::Display) -> ResampleError {
    ResampleError::Filter(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    fn tone(hz: f64, rate: u32, len: usize) -> Vec<f32> {
        (0..len).map(|i| (0.5 * (TAU * hz * i as f64 / f64::from(rate)).sin()) as f32).collect()
    }

    const RATES: [u32; 9] = [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000, 192_000];

    #[test]
    fn batch_keeps_length_and_alignment_at_every_rate() {
        for from in RATES {
            let to = 24_000;
            let x = tone(440.0, from, from as usize);
            let y = resample(&x, from, to).unwrap();
            assert_eq!(y.len(), to as usize, "{from} -> {to}");
            let expected = tone(440.0, to, to as usize);
            let worst = (500..to as usize - 500).map(|i| (y[i] - expected[i]).abs()).fold(0.0f32, f32::max);
            // Half a sample of misalignment would be 0.029 at this frequency.
            println!("{from}: worst {worst}");
            assert!(worst < 0.03, "{from} -> {to}: off by {worst}");
        }
    }

    #[test]
    fn streaming_in_odd_pieces_equals_batch() {
        for (from, to) in [(44_100, 24_000), (24_000, 48_000), (24_000, 44_100), (16_000, 24_000)] {
            let x = tone(1000.0, from, from as usize);
            let batch = resample(&x, from, to).unwrap();
            let mut stream = Resampler::new(from, to).unwrap();
            let mut y = Vec::new();
            let (mut at, mut step) = (0, 1);
            while at < x.len() {
                let end = (at + step).min(x.len());
                stream.process(&x[at..end], &mut y).unwrap();
                (at, step) = (end, step * 7 % 1013 + 1);
            }
            stream.flush(&mut y).unwrap();
            let skip = stream.delay().round() as usize;
            assert_eq!(y.len() - skip, batch.len());
            let worst = y[skip..].iter().zip(&batch).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
            assert!(worst < 1e-5, "{from} -> {to}: differs by {worst}");
        }
    }

    #[test]
    fn nothing_is_held_back_beyond_the_delay() {
        let mut stream = Resampler::new(48_000, 24_000).unwrap();
        let mut y = Vec::new();
        stream.process(&vec![0.0; 4_800], &mut y).unwrap();
        let late = 2_400.0 - y.len() as f64;
        assert!(late.abs() <= stream.delay() + 2.0, "{late} samples held back");
    }

    #[test]
    fn equal_rates_pass_through() {
        let x = tone(440.0, 24_000, 1_000);
        assert_eq!(resample(&x, 24_000, 24_000).unwrap(), x);
        assert_eq!(Resampler::new(24_000, 24_000).unwrap().delay(), 0.0);
    }

    #[test]
    fn a_nonsensical_rate_is_refused() {
        assert_eq!(Resampler::new(0, 24_000).err(), Some(ResampleError::Rate(0)));
    }
}
