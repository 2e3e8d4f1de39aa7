//! Echo cancellation: takes what the loudspeaker played out of what the microphone heard.
//!
//! A long adaptive filter (`echo_filter`) learns the way from loudspeaker to microphone, whatever its delay up to about
//! 400 ms; `echo_reference` bends the played signal's time so that two clocks that drift apart look like one
//! (`echo_drift` finds by how much); `echo_suppressor` lowers what the filter knows it has left.
//!
//! # Why not WebRTC's AEC3
//! Both Rust ports were measured, fed at 24 kHz directly, on 16 rooms of `benchmarks/echo_rooms.py` (medians after 3 s:
//! ERLE in single talk; near-end SI-SDR where both talk; untreated 0 dB and -1.9 dB):
//!
//! | | ERLE | SI-SDR |
//! | --- | --- | --- |
//! | `sonora-aec3` 0.2, default | 33.1 | 0.7 |
//! | `aec3` 0.4, default | 29.7 | 0.9 |
//! | either one's linear filter alone, 13 to 60 blocks | 5.8 to 6.3 | 1.8 to 2.8 |
//! | this module's filter alone | 20.9 | 12.1 |
//! | this module's filter, then `sonora-aec3` | 29.2 | 9.4 |
//! | this module | 34 | 10 |
//!
//! AEC3's filter follows neither reverberation nor drifting clocks far enough, so that its suppressor must do the work
//! and takes the interrupting user's voice with it; the voice is what a full-duplex model needs.
//!
//! # Licence and patents
//! Written for this project from published papers, no code taken from WebRTC, Speex or another canceller, no dependency
//! but `realfft` (MIT): the project's own MIT OR Apache-2.0. WebRTC's patent grant covers WebRTC's implementation and
//! so nothing here; no patent search was made.

use crate::echo_filter::EchoFilter;
use crate::echo_reference::Reference;
use crate::echo_suppressor::Suppressor;

/// Rates that can be asked for. The choices within were tuned at 24 kHz.
pub const RATES: std::ops::RangeInclusive<u32> = 8_000..=48_000;
/// The filter's reach in seconds: 300 ms of delay, and the room's reverberation after it.
const REACH: f64 = 0.48;
/// No sound card delivers more; anything above is a defect upstream, and is not let into the filter's memory.
const LARGEST: f32 = 4.0;
/// The corner in Hz below which nothing is heard, yet much is measured: a microphone's offset, and the pressure of a small
/// room, which answers a constant a hundred times louder than a voice. The filter learns it last and leaves most of it.
const INAUDIBLE: f64 = 20.0;
/// The high-pass filter's corner in Hz where that is asked for: below the voice, above handling noise and hum.
const HIGH_PASS: f64 = 80.0;

/// A filter's memory of this size is none.
const SILENT: f64 = 1e-12;

/// A canceller that can't be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EchoError {
    /// The rate is outside of `RATES`.
    #[error("a sample rate of {0} Hz was given; echo can be cancelled at 8000 to 48000 Hz, best at 24000")]
    Rate(u32),
    /// The two signals don't belong together.
    #[error(
        "{mic} microphone samples came with {played} played ones; give as many of both, taken at the same time"
    )]
    Lengths {
        /// Samples of the microphone.
        mic: usize,
        /// Samples that were played.
        played: usize,
    },
}

/// What else to do to the microphone's signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EchoOptions {
    /// Remove what lies below the voice (80 Hz), not only what nobody hears (20 Hz).
    pub high_pass: bool,
    /// Lower steady background noise by up to 15 dB.
    pub noise_suppression: bool,
}

/// Cancels the echo in one microphone's stream; any number of samples at a time, always `delay()` samples late.
///
/// After `new`, nothing allocates. Values that are not finite count as silence.
pub struct EchoCanceller {
    block: usize,
    reference: Reference,
    filter: EchoFilter,
    suppressor: Suppressor,
    mic_filter: Biquad,
    played_filter: Biquad,
    mic: Vec<f32>,
    played: Vec<f32>,
    filled: usize,
    residual: Vec<f32>,
    estimate: Vec<f32>,
    ready: Vec<f32>,
}

impl EchoCanceller {
    /// A canceller that knows nothing of its room yet; it learns within a second or two of sound.
    ///
    /// # Errors
    /// `EchoError::Rate` when the rate is outside of `RATES`.
    pub fn new(sample_rate: u32, options: EchoOptions) -> Result<Self, EchoError> {
        if !RATES.contains(&sample_rate) {
            return Err(EchoError::Rate(sample_rate));
        }
        let block = if sample_rate <= 24_000 { 128 } else { 256 };
        let parts = (REACH * f64::from(sample_rate) / block as f64).ceil() as usize;
        let high_pass = |corner: f64| Biquad::high_pass(corner / f64::from(sample_rate));
        Ok(Self {
            block,
            reference: Reference::new(block),
            filter: EchoFilter::new(block, parts, f64::from(sample_rate)),
            suppressor: Suppressor::new(block, options.noise_suppression),
            mic_filter: high_pass(if options.high_pass { HIGH_PASS } else { INAUDIBLE }),
            played_filter: high_pass(INAUDIBLE),
            mic: vec![0.0; block],
            played: vec![0.0; block],
            filled: 0,
            residual: vec![0.0; block],
            estimate: vec![0.0; block],
            ready: vec![0.0; block],
        })
    }

    /// How late the output is, in samples: one block to fill and one to overlap.
    pub fn delay(&self) -> usize {
        2 * self.block
    }

    /// How fast the loudspeaker's clock leaves the microphone's, in parts per million (found from the echo).
    pub fn drift_ppm(&self) -> f64 {
        self.reference.rate() * 1e6
    }

    /// Cancels in place: `mic` comes in as heard and leaves without what was `played` at the same time.
    ///
    /// # Errors
    /// `EchoError::Lengths` when the two differ in length; nothing has happened then.
    pub fn process(&mut self, mic: &mut [f32], played: &[f32]) -> Result<(), EchoError> {
        if mic.len() != played.len() {
            return Err(EchoError::Lengths { mic: mic.len(), played: played.len() });
        }
        for (heard, &played) in mic.iter_mut().zip(played) {
            self.mic[self.filled] = sane(*heard);
            self.played[self.filled] = sane(played);
            *heard = self.ready[self.filled];
            self.filled += 1;
            if self.filled == self.block {
                self.filled = 0;
                self.step();
            }
        }
        Ok(())
    }

    fn step(&mut self) {
        self.mic_filter.apply(&mut self.mic);
        self.played_filter.apply(&mut self.played);
        self.reference.advance(&self.played, &mut self.filter);
        self.filter.cancel(&self.mic, &mut self.residual, &mut self.estimate);
        if let Some(rate) = self.filter.drift() {
            self.reference.adjust(rate);
        }
        let uncertainty = self.filter.uncertainty();
        self.suppressor.process(&self.residual, &self.estimate, uncertainty, &mut self.ready);
    }
}

fn sane(x: f32) -> f32 {
    if x.is_finite() { x.clamp(-LARGEST, LARGEST) } else { 0.0 }
}

/// Sum of squares.
pub(crate) fn energy(x: &[f32]) -> f32 {
    x.iter().map(|v| v * v).sum()
}

/// A second-order section, direct form II transposed; in double precision, as low corners need.
pub(crate) struct Biquad {
    b: [f64; 3],
    a: [f64; 2],
    state: [f64; 2],
}

impl Biquad {
    /// Butterworth high-pass; `corner` as a part of the sample rate.
    pub(crate) fn high_pass(corner: f64) -> Self {
        let k = (std::f64::consts::PI * corner).tan();
        let norm = 1.0 / (1.0 + std::f64::consts::SQRT_2 * k + k * k);
        let a1 = 2.0 * (k * k - 1.0) * norm;
        let a2 = (1.0 - std::f64::consts::SQRT_2 * k + k * k) * norm;
        Self { b: [norm, -2.0 * norm, norm], a: [a1, a2], state: [0.0; 2] }
    }

    /// Filters the next samples in place.
    pub(crate) fn apply(&mut self, samples: &mut [f32]) {
        for sample in samples {
            let x = f64::from(*sample);
            let y = self.b[0] * x + self.state[0];
            self.state[0] = self.b[1] * x - self.a[0] * y + self.state[1];
            self.state[1] = self.b[2] * x - self.a[1] * y;
            *sample = y as f32;
        }
        // What dies away in silence ends before its numbers become too small for the processor's fast path.
        if self.state.iter().all(|x| x.abs() < SILENT) {
            self.state = [0.0; 2];
        }
    }
}
