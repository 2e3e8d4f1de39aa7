//! The two ends of the engine: what reaches the model from the microphone, and the speaker from the model.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::capture::CaptureReader;
use crate::echo::EchoCanceller;
use crate::frame::{FRAME_SIZE, SAMPLE_RATE};
use crate::meter::{Level, power_db};
use crate::playback::PlaybackWriter;
use crate::reference::PlayedReference;
use crate::resample::ResampleError;

/// Without sound for so many samples, silence is put in its place, so that the conversation goes on.
const PATIENCE: u64 = SAMPLE_RATE as u64 / 4;
/// So much silence is made up at once and no more: after a program that stood still for an hour, it is of no use.
const MOST_SILENCE: u64 = SAMPLE_RATE as u64;
/// Zeros for so long are no silence: the microphone is refused or muted.
const ZEROS_SECONDS: f64 = 3.0;

/// Played sound above this power (-60 dB) can be heard by a microphone.
const AUDIBLE: f64 = 1e-6;

/// Locks without giving up when another thread died with the lock.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Samples at 24 kHz since the clock began.
fn samples_at(now_ns: u64) -> u64 {
    (u128::from(now_ns) * u128::from(SAMPLE_RATE) / 1_000_000_000) as u64
}

/// What is added up over all streams that a line has had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InputTotals {
    /// Samples lost in the ring, in milliseconds.
    pub overrun_ms: u64,
    /// Times that this happened.
    pub overruns: u64,
}

/// The microphone's half that the engine's thread owns.
#[derive(Default)]
pub struct InputEnd {
    /// The running stream's reader.
    pub reader: Option<CaptureReader>,
    /// From streams that have ended.
    pub past: InputTotals,
    /// Up to where sound or silence was given, in samples at 24 kHz since the clock began; 0 before the first.
    covered: u64,
    wanted: bool,
    replaced: bool,
    hinted: bool,
}

impl InputEnd {
    /// An end that gives silence when there is no microphone, if one is `wanted`.
    pub fn new(wanted: bool) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Replaces `output` with everything that came in by `now_ns`, or with silence if nothing has for a while; gives the
    /// number of whole frames of silence before it that were left out.
    pub fn drain(&mut self, now_ns: u64, output: &mut Vec<f32>) -> u64 {
        output.clear();
        if let Some(reader) = &mut self.reader
            && reader.drain(output).is_err()
        {
            // The filter can't fail on lengths that it was made for; if it does, what it has is silence.
            output.clear();
        }
        let now = samples_at(now_ns);
        let gap = now.saturating_sub(self.covered);
        let mut left_out = 0;
        if !output.is_empty() || self.covered == 0 {
            self.replaced = false;
        } else if self.wanted && (self.replaced || gap > PATIENCE) {
            self.replaced = true;
            left_out = gap.saturating_sub(MOST_SILENCE) / FRAME_SIZE as u64;
            output.resize((gap - left_out * FRAME_SIZE as u64) as usize, 0.0);
        } else {
            return 0;
        }
        self.covered = now.max(1);
        left_out
    }

    /// Whether to tell the user, once, that nothing but zeros comes in.
    pub fn only_zeros(&mut self) -> bool {
        let zeros = self.reader.as_ref().is_some_and(|r| r.zero_seconds() >= ZEROS_SECONDS);
        let tell = zeros && !self.hinted;
        self.hinted = zeros;
        tell
    }

    /// Takes the reader away and keeps what it counted.
    pub fn close(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.past = self.totals_with(&reader);
        }
        self.hinted = false;
    }

    fn totals_with(&self, reader: &CaptureReader) -> InputTotals {
        let lost = reader.meters.overrun.get() * 1_000 / u64::from(reader.rate());
        InputTotals {
            overrun_ms: self.past.overrun_ms + lost,
            overruns: self.past.overruns + reader.meters.overruns.get(),
        }
    }

    /// Over all streams.
    pub fn totals(&self) -> InputTotals {
        self.reader.as_ref().map_or(self.past, |reader| self.totals_with(reader))
    }
}

/// What is added up over all streams that the speaker has had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputTotals {
    /// Times that the ring ran empty while playing.
    pub underruns: u64,
    /// Sound skipped because too much waited, in milliseconds.
    pub skipped_ms: u64,
}

/// The speaker's half that writers own.
#[derive(Default)]
pub struct OutputEnd {
    /// The running stream's writer.
    pub writer: Option<PlaybackWriter>,
    /// From streams that have ended.
    pub past: OutputTotals,
    /// Frames written while there was no speaker.
    pub unheard: u64,
    /// Seconds of sound that waited before the last frame.
    pub waited: f64,
}

impl OutputEnd {
    /// Takes the writer away and keeps what it counted.
    pub fn close(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.past = self.totals_with(&writer);
        }
    }

    fn totals_with(&self, writer: &PlaybackWriter) -> OutputTotals {
        let skipped = writer.meters.skipped.get() * 1_000 / u64::from(writer.rate());
        OutputTotals {
            underruns: self.past.underruns + writer.meters.underruns.get(),
            skipped_ms: self.past.skipped_ms + skipped,
        }
    }

    /// Over all streams.
    pub fn totals(&self) -> OutputTotals {
        self.writer.as_ref().map_or(self.past, |writer| self.totals_with(writer))
    }
}

/// Echo cancellation between the ends, and how well it does.
#[derive(Default)]
pub struct EchoEnd {
    /// None when it is off.
    pub canceller: Option<Box<EchoCanceller>>,
    /// What was played; none while there is no speaker.
    pub reference: Option<PlayedReference>,
    /// Loudness of what the model hears.
    pub level: Level,
    played: Vec<f32>,
    before: f64,
    after: f64,
}

impl EchoEnd {
    /// An end with this canceller, or with none.
    pub fn new(canceller: Option<Box<EchoCanceller>>) -> Self {
        Self { canceller, ..Self::default() }
    }

    /// Replaces `clean` with `mic` less the echo of what was played.
    ///
    /// # Errors
    /// `ResampleError::Filter` when the filter fails.
    pub fn process(&mut self, mic: &[f32], clean: &mut Vec<f32>) -> Result<(), ResampleError> {
        self.played.clear();
        match &mut self.reference {
            Some(reference) => reference.take(mic.len(), &mut self.played)?,
            None => self.played.resize(mic.len(), 0.0),
        }
        clean.clear();
        clean.extend_from_slice(mic);
        if let Some(canceller) = &mut self.canceller {
            // Refused only for unequal lengths; these are equal.
            let _ = canceller.process(clean, &self.played);
        }
        self.measure(mic, clean);
        Ok(())
    }

    /// Echo is judged where something is played, over the last seconds.
    fn measure(&mut self, mic: &[f32], clean: &[f32]) {
        if mic.is_empty() {
            return;
        }
        let power = |x: &[f32]| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len().max(1) as f64;
        let seconds = mic.len() as f64 / f64::from(SAMPLE_RATE);
        self.level.update(power(clean) as f32, seconds as f32);
        if power(&self.played) > AUDIBLE {
            let weight = (seconds / 2.0).min(1.0);
            self.before += weight * (power(mic) - self.before);
            self.after += weight * (power(clean) - self.after);
        }
    }

    /// How much quieter the microphone became while something was played, in dB; 0 while nothing was.
    pub fn reduction_db(&self) -> f64 {
        if self.canceller.is_none() || self.before < 1e-9 {
            return 0.0;
        }
        power_db(self.before) - power_db(self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An end without a microphone that has given silence up to one second.
    fn replaced() -> InputEnd {
        let mut end = InputEnd::new(true);
        end.drain(0, &mut Vec::new());
        end.drain(1_000_000_000, &mut Vec::new());
        end
    }

    #[test]
    fn silence_in_place_of_a_microphone_keeps_time() {
        let mut end = replaced();
        let (mut silence, mut samples) = (Vec::new(), 0);
        // Steps that are no whole number of samples.
        for step in 1..=10_000 {
            end.drain(1_000_000_000 + step * 2_030_000, &mut silence);
            samples += silence.len();
        }
        assert_eq!(samples, 487_200, "20.3 s at 24 kHz");
    }

    #[test]
    fn after_an_hour_that_stood_still_the_silence_is_short_and_the_rest_is_counted() {
        let mut end = replaced();
        let mut silence = Vec::new();
        let left_out = end.drain(3_601_000_000_000, &mut silence);
        assert!(silence.len() < SAMPLE_RATE as usize + FRAME_SIZE, "{} samples were made", silence.len());
        let covered = left_out * FRAME_SIZE as u64 + silence.len() as u64;
        assert_eq!(covered, 3_600 * u64::from(SAMPLE_RATE), "{left_out} frames were left out");
        assert_eq!(end.drain(3_601_002_000_000, &mut silence), 0);
        assert_eq!(silence.len(), 48);
    }
}
