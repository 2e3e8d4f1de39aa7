//! Lowers the echo that the filter has left, bin by bin, and steady noise if asked to.
//!
//! How much echo is left comes from two sources: the filter's own uncertainty (its variances times what is playing),
//! and a ratio of residual to estimated echo that is learned per bin as a low quantile, so that it is the ratio of the
//! moments when nobody talks. A Wiener gain with a decision-directed estimate follows (Ephraim and Malah 1984).

use realfft::num_complex::Complex32;

use crate::echo_spectrum::Transform;

/// Weight of the filter's own uncertainty.
const UNCERTAINTY: f32 = 1.5;
/// Weight of the learned ratio, and the quantile it stands for.
const RATIO: f32 = 1.0;
const QUANTILE: f32 = 0.2;
/// Step of the quantile, its start and its limits.
const QUANTILE_STEP: f32 = 0.02;
const RATIO_START: f32 = 0.3;
const RATIO_LIMITS: (f32, f32) = (1e-4, 2.0);
/// Estimated echo below this power teaches nothing.
const AUDIBLE: f32 = 1e-5;
/// What a block leaves of the echo's tail, and of the smoothed spectra.
const TAIL: f32 = 0.8;
const SMOOTH: f32 = 0.2;
/// How much the last block's result counts in the next one's gain.
const DIRECTED: f32 = 0.6;
/// Lowest gain.
const FLOOR: f32 = 0.01;
/// Where more than this share of a block is echo, gains are lowered further: up to this power of themselves.
const MOSTLY_ECHO: f32 = 0.5;
const HARDER: f32 = 3.0;
/// Noise: weight, lowest gain, and how fast its floor may rise per block (about 2 dB a second).
const NOISE: f32 = 2.0;
const NOISE_FLOOR: f32 = 0.18;
const NOISE_RISE: f32 = 1.003;
/// Smoothing of the spectrum whose minimum is the noise, and of the one it is taken from.
const NOISE_SMOOTH: (f32, f32) = (0.95, 0.7);

/// Half-overlapping windowed blocks, so that its output is a block late.
pub(crate) struct Suppressor {
    block: usize,
    transform: Transform,
    window: Vec<f32>,
    last_residual: Vec<f32>,
    last_estimate: Vec<f32>,
    residual: Vec<Complex32>,
    estimate: Vec<Complex32>,
    overlap: Vec<f32>,
    bins: Vec<Bin>,
    share: f32,
    noise_suppression: bool,
}

/// What is known of a bin from the blocks before.
#[derive(Clone)]
struct Bin {
    ratio: f32,
    left: f32,
    echo: f32,
    tail: f32,
    kept: f32,
    noise: f32,
    slow: f32,
    calm: f32,
    gain: f32,
}

impl Suppressor {
    pub fn new(block: usize, noise_suppression: bool) -> Self {
        let half_turn = std::f32::consts::PI / (2 * block) as f32;
        let bin = Bin {
            ratio: RATIO_START,
            left: 0.0,
            echo: 0.0,
            tail: 0.0,
            kept: 0.0,
            noise: 1e-3,
            slow: 1e-3,
            calm: 0.0,
            gain: 1.0,
        };
        Self {
            block,
            transform: Transform::new(block),
            window: (0..2 * block).map(|i| ((i as f32 + 0.5) * half_turn).sin()).collect(),
            last_residual: vec![0.0; block],
            last_estimate: vec![0.0; block],
            residual: vec![Complex32::default(); block + 1],
            estimate: vec![Complex32::default(); block + 1],
            overlap: vec![0.0; block],
            bins: vec![bin; block + 1],
            share: 0.0,
            noise_suppression,
        }
    }

    /// Takes a block of what the filter left and of what it took, and its uncertainty per bin.
    pub fn process(&mut self, residual: &[f32], estimate: &[f32], uncertainty: &[f32], output: &mut [f32]) {
        analyze(&mut self.transform, &self.window, &mut self.last_residual, residual, &mut self.residual);
        analyze(&mut self.transform, &self.window, &mut self.last_estimate, estimate, &mut self.estimate);
        self.observe();
        self.choose_gains(uncertainty);
        let last = self.block;
        for bin in 0..=last {
            let around = &self.bins[bin.saturating_sub(1)..(bin + 2).min(last + 1)];
            let gain = around.iter().map(|b| b.gain).sum::<f32>() / around.len() as f32;
            let noise = self.noise_gain(bin);
            self.residual[bin] *= gain * noise;
        }
        self.transform.inverse(&mut self.residual);
        let (first, second) = self.transform.time.split_at(self.block);
        let (rising, falling) = self.window.split_at(self.block);
        for i in 0..self.block {
            output[i] = self.overlap[i] + first[i] * rising[i];
            self.overlap[i] = second[i] * falling[i];
        }
    }

    fn observe(&mut self) {
        for (bin, (residual, estimate)) in self.bins.iter_mut().zip(self.residual.iter().zip(&self.estimate))
        {
            let echo = estimate.norm_sqr();
            let power = residual.norm_sqr();
            bin.left = SMOOTH * bin.left + (1.0 - SMOOTH) * power;
            bin.slow = NOISE_SMOOTH.0 * bin.slow + (1.0 - NOISE_SMOOTH.0) * power;
            bin.calm = NOISE_SMOOTH.1 * bin.calm + (1.0 - NOISE_SMOOTH.1) * power;
            bin.tail = (TAIL * bin.tail).max(echo);
            bin.echo = SMOOTH * bin.echo + (1.0 - SMOOTH) * bin.tail;
            bin.noise = (bin.noise * NOISE_RISE).min(bin.slow).max(1e-9);
            if bin.echo > AUDIBLE {
                let below = bin.left < bin.ratio * bin.echo;
                let step = if below { -QUANTILE_STEP * (1.0 - QUANTILE) } else { QUANTILE_STEP * QUANTILE };
                bin.ratio = (bin.ratio * (1.0 + step)).clamp(RATIO_LIMITS.0, RATIO_LIMITS.1);
            }
        }
    }

    fn choose_gains(&mut self, uncertainty: &[f32]) {
        let (mut echo, mut all) = (0.0, 0.0);
        for (bin, unsure) in uncertainty.iter().enumerate().take(self.block + 1) {
            let around = &self.bins[bin.saturating_sub(2)..(bin + 3).min(self.block + 1)];
            let ratio = around.iter().map(|b| b.ratio).sum::<f32>() / around.len() as f32;
            let here = &mut self.bins[bin];
            let power = self.residual[bin].norm_sqr();
            let left = RATIO * ratio * here.echo + UNCERTAINTY * unsure;
            echo += left.min(here.left);
            all += here.left;
            let posterior = power / (left + 1e-10);
            let prior = DIRECTED * here.kept + (1.0 - DIRECTED) * (posterior - 1.0).max(0.0);
            here.gain = (prior / (1.0 + prior)).max(FLOOR);
            here.kept = here.gain * here.gain * posterior;
        }
        self.share += 0.3 * (echo / (all + 1e-9) - self.share);
        let harder = HARDER * ((self.share - MOSTLY_ECHO) / (1.0 - MOSTLY_ECHO)).max(0.0);
        if harder > 0.0 {
            for bin in &mut self.bins {
                bin.gain = bin.gain.powf(1.0 + harder).max(FLOOR);
            }
        }
    }

    fn noise_gain(&self, bin: usize) -> f32 {
        if !self.noise_suppression {
            return 1.0;
        }
        let bin = &self.bins[bin];
        (1.0 - NOISE * bin.noise / (bin.calm + 1e-9)).max(NOISE_FLOOR)
    }
}

/// The spectrum of a block and the one before it.
fn analyze(
    transform: &mut Transform,
    window: &[f32],
    last: &mut [f32],
    block: &[f32],
    bins: &mut [Complex32],
) {
    let samples = last.iter().chain(block).zip(window).map(|(x, w)| x * w);
    transform.time.iter_mut().zip(samples).for_each(|(time, x)| *time = x);
    last.copy_from_slice(block);
    transform.forward(bins);
}
