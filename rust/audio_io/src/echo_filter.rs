//! The echo path as a frequency-domain Kalman filter in parts.
//!
//! Every bin of every part is a state with a variance: the step size follows from what is still unknown against what is
//! heard, so that a voice in the room slows the learning down by itself, without a double-talk detector.
//! Source: Enzner and Vary, "Frequency-domain adaptive Kalman filter for acoustic echo control in hands-free
//! telephones", Signal Processing 86 (2006); Kuech, Mabande and Enzner, "State-space architecture of the
//! partitioned-block-based acoustic echo controller", ICASSP 2014.

use realfft::num_complex::Complex32;

use crate::echo::energy;
use crate::echo_drift::DriftFinder;
use crate::echo_spectrum::Transform;

/// Variance of a part at the start: about the power of a loud echo, spread over all parts.
const UNKNOWN: f32 = 0.004;
/// What one block leaves of the state; the rest is fresh uncertainty (rooms change).
const KEPT: f32 = 0.999 * 0.999;
/// Least power a part may regain, so that an echo can appear where none was.
const POSSIBLE: f32 = 1e-5;
/// Smoothing of the near end's spectrum.
const SMOOTH: f32 = 0.8;
/// Smoothing of the energies that tell whether the filter does harm (about 130 ms).
const WATCH: f32 = 0.96;
/// The filter starts anew when it leaves more than this times what came in.
const HARM: f32 = 1.25;

pub(crate) struct EchoFilter {
    block: usize,
    parts: usize,
    transform: Transform,
    /// Spectra of the last `parts` pairs of blocks, newest at `head`, and their powers.
    played: Vec<Complex32>,
    power: Vec<f32>,
    head: usize,
    previous: Vec<f32>,
    weights: Vec<Complex32>,
    variance: Vec<f32>,
    near: Vec<f32>,
    error: Vec<Complex32>,
    work: Vec<Complex32>,
    uncertainty: Vec<f32>,
    drift: DriftFinder,
    came: f32,
    left: f32,
}

impl EchoFilter {
    pub fn new(block: usize, parts: usize, rate: f64) -> Self {
        let bins = block + 1;
        Self {
            block,
            parts,
            transform: Transform::new(block),
            played: vec![Complex32::default(); parts * bins],
            power: vec![0.0; parts * bins],
            head: 0,
            previous: vec![0.0; block],
            weights: vec![Complex32::default(); parts * bins],
            variance: vec![UNKNOWN; parts * bins],
            near: vec![1e-6; bins],
            error: vec![Complex32::default(); bins],
            work: vec![Complex32::default(); bins],
            uncertainty: vec![0.0; bins],
            drift: DriftFinder::new(block, parts, rate),
            came: 0.0,
            left: 0.0,
        }
    }

    /// Takes the next block that was played.
    pub fn push(&mut self, played: &[f32]) {
        let bins = self.block + 1;
        self.head = (self.head + self.parts - 1) % self.parts;
        let (before, now) = self.transform.time.split_at_mut(self.block);
        before.copy_from_slice(&self.previous);
        now.copy_from_slice(played);
        self.previous.copy_from_slice(played);
        let newest = self.head * bins..(self.head + 1) * bins;
        self.transform.forward(&mut self.played[newest.clone()]);
        for (power, bin) in self.power[newest.clone()].iter_mut().zip(&self.played[newest]) {
            *power = bin.norm_sqr();
        }
    }

    /// The reference came a block earlier than before: every part is one later.
    pub fn move_later(&mut self) {
        let bins = self.block + 1;
        let kept = ..(self.parts - 1) * bins;
        self.weights.copy_within(kept, bins);
        self.weights[..bins].fill(Complex32::default());
        self.variance.copy_within(kept, bins);
        self.drift.move_later();
    }

    /// The reference comes a block later than before: every part is one earlier.
    pub fn move_earlier(&mut self) {
        let bins = self.block + 1;
        let last = (self.parts - 1) * bins;
        self.weights.copy_within(bins.., 0);
        self.weights[last..].fill(Complex32::default());
        self.variance.copy_within(bins.., 0);
        self.drift.move_earlier();
    }

    /// Subtracts the echo from a block: what is left and what was taken; then learns from it.
    pub fn cancel(&mut self, mic: &[f32], residual: &mut [f32], estimate: &mut [f32]) {
        self.predict();
        estimate.copy_from_slice(&self.transform.time[self.block..]);
        for ((left, heard), echo) in residual.iter_mut().zip(mic).zip(&*estimate) {
            *left = heard - echo;
        }
        self.came = WATCH * self.came + energy(mic);
        self.left = WATCH * self.left + energy(residual);
        // Also where the sum is no number any more.
        if self.left.is_nan() || self.left > HARM * self.came + 1e-6 {
            self.forget();
            residual.copy_from_slice(mic);
            estimate.fill(0.0);
        }
        self.transform.time[..self.block].fill(0.0);
        self.transform.time[self.block..].copy_from_slice(residual);
        self.transform.forward(&mut self.error);
        for (near, error) in self.near.iter_mut().zip(&self.error) {
            *near = SMOOTH * *near + (1.0 - SMOOTH) * error.norm_sqr();
        }
        self.learn();
    }

    /// Power of the echo that is left by what the filter doesn't know, per bin.
    pub fn uncertainty(&self) -> &[f32] {
        &self.uncertainty
    }

    /// How much faster the echo path has been moving than the reference follows, once in a while.
    pub fn drift(&mut self) -> Option<f64> {
        self.drift.next(&self.weights)
    }

    fn forget(&mut self) {
        self.weights.fill(Complex32::default());
        self.variance.fill(UNKNOWN);
        self.drift.forget();
        self.left = self.came;
    }

    /// The echo of this block, to the second half of the transform's samples.
    fn predict(&mut self) {
        let bins = self.block + 1;
        self.work.fill(Complex32::default());
        self.uncertainty.fill(0.0);
        for part in 0..self.parts {
            let then = (self.head + part) % self.parts * bins;
            let played = &self.played[then..][..bins];
            let power = &self.power[then..][..bins];
            let weights = &self.weights[part * bins..][..bins];
            let variance = &self.variance[part * bins..][..bins];
            for bin in 0..bins {
                self.work[bin] += played[bin] * weights[bin];
                self.uncertainty[bin] += power[bin] * variance[bin];
            }
        }
        self.transform.inverse(&mut self.work);
    }

    fn learn(&mut self) {
        let bins = self.block + 1;
        for part in 0..self.parts {
            let then = (self.head + part) % self.parts * bins;
            let played = &self.played[then..][..bins];
            let power = &self.power[then..][..bins];
            let variance = &mut self.variance[part * bins..][..bins];
            for bin in 0..bins {
                let gain = variance[bin] / (0.5 * self.uncertainty[bin] + self.near[bin] + 1e-9);
                self.work[bin] = played[bin].conj() * self.error[bin] * gain;
                variance[bin] *= KEPT * (1.0 - 0.5 * gain * power[bin]);
            }
            // Only the first half in time belongs to this part.
            self.transform.inverse(&mut self.work);
            self.transform.time[self.block..].fill(0.0);
            self.transform.forward(&mut self.work);
            let weights = &mut self.weights[part * bins..][..bins];
            for bin in 0..bins {
                weights[bin] += self.work[bin];
                variance[bin] += (1.0 - KEPT) * (weights[bin].norm_sqr() + POSSIBLE);
            }
        }
    }
}
