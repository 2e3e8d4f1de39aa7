//! What was really played, at 24 kHz and on the microphone's clock: the echo canceller's other ear.

use std::collections::VecDeque;

use rtrb::Consumer;

use crate::drift::{LevelControl, Pace};
use crate::frame::SAMPLE_RATE;
use crate::resample::{ResampleError, Resampler};

/// Reserve in seconds. The loudspeaker's and the microphone's own latencies are longer, so the reference stays ahead
/// of its echo.
const MARGIN: f64 = 0.003;
/// Above this many seconds the oldest part is thrown away: the microphone had stopped.
const CEILING: f64 = 0.15;

/// Pairs each microphone sample with the sample that was being played when it came in.
pub struct PlayedReference {
    ring: Consumer<f32>,
    resampler: Resampler,
    control: LevelControl,
    waiting: VecDeque<f32>,
    raw: Vec<f32>,
    converted: Vec<f32>,
    missing: u64,
}

impl PlayedReference {
    /// A reference fed from the callback's ring of played samples, at the device's rate.
    ///
    /// # Errors
    /// `ResampleError::Rate` when the rate is out of range.
    pub fn new(ring: Consumer<f32>, rate: u32) -> Result<Self, ResampleError> {
        let capacity = ring.buffer().capacity();
        Ok(Self {
            ring,
            resampler: Resampler::adjustable(rate, SAMPLE_RATE)?,
            control: LevelControl::new(MARGIN, 0.0, CEILING / 2.0, Pace::STEADY),
            waiting: VecDeque::with_capacity(SAMPLE_RATE as usize),
            raw: Vec::with_capacity(capacity),
            converted: Vec::with_capacity(SAMPLE_RATE as usize),
            missing: 0,
        })
    }

    /// Gives as many samples as the microphone did, replacing `output`.
    ///
    /// # Errors
    /// `ResampleError::Filter` when the filter fails.
    pub fn take(&mut self, count: usize, output: &mut Vec<f32>) -> Result<(), ResampleError> {
        self.raw.clear();
        if let Ok(chunk) = self.ring.read_chunk(self.ring.slots()) {
            let (first, second) = chunk.as_slices();
            self.raw.extend_from_slice(first);
            self.raw.extend_from_slice(second);
            chunk.commit_all();
        }
        self.converted.clear();
        self.resampler.process(&self.raw, &mut self.converted)?;
        self.waiting.extend(&self.converted);

        output.clear();
        let ready = count.min(self.waiting.len());
        // Missing samples count as played silence; they come first, so that what follows stays in order.
        output.resize(count - ready, 0.0);
        self.missing += (count - ready) as u64;
        output.extend(self.waiting.drain(..ready));

        let limit = (CEILING * f64::from(SAMPLE_RATE)) as usize;
        if self.waiting.len() > limit {
            let keep = (self.control.target() * f64::from(SAMPLE_RATE)) as usize;
            self.waiting.drain(..self.waiting.len() - keep);
            self.control.restart(self.level());
        } else if count > 0 {
            let dt = count as f64 / f64::from(SAMPLE_RATE);
            // Short by some samples means below the reserve by as many.
            let level = self.level() - (count - ready) as f64 / f64::from(SAMPLE_RATE);
            let adjust = self.control.update(level, dt);
            self.resampler.adjust(adjust);
        }
        Ok(())
    }

    fn level(&self) -> f64 {
        self.waiting.len() as f64 / f64::from(SAMPLE_RATE)
    }

    /// Samples that were asked for before they had been played.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// How much faster the loudspeaker's clock runs than the microphone's, in parts per million.
    pub fn drift_ppm(&self) -> f64 {
        self.control.drift_ppm()
    }
}
