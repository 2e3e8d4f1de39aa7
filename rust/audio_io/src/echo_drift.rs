//! Finds how fast two clocks drift apart from how the learned echo path moves.

use std::f64::consts::PI;

use realfft::num_complex::{Complex32, Complex64};

/// Seconds between two looks at the filter.
const INTERVAL: f64 = 0.4;
/// Furthest movement looked for, in samples per sample.
const RANGE: f64 = 1.5e-4;
/// Step of the search in samples.
const STEP: f64 = 0.1;
/// Less similar paths (0 to 1) are not one path that moved.
const SIMILAR: f64 = 0.3;

/// Compares the filter with itself a while ago: a clock that runs slow turns every bin's phase by its frequency.
pub(crate) struct DriftFinder {
    block: usize,
    every: usize,
    age: usize,
    before: Vec<Complex32>,
    cross: Vec<Complex64>,
}

impl DriftFinder {
    pub fn new(block: usize, parts: usize, rate: f64) -> Self {
        let bins = block + 1;
        Self {
            block,
            every: (INTERVAL * rate / block as f64).round() as usize,
            age: 0,
            before: vec![Complex32::default(); parts * bins],
            cross: vec![Complex64::default(); bins],
        }
    }

    pub fn move_later(&mut self) {
        let bins = self.block + 1;
        let kept = ..self.before.len() - bins;
        self.before.copy_within(kept, bins);
        self.before[..bins].fill(Complex32::default());
    }

    pub fn move_earlier(&mut self) {
        let bins = self.block + 1;
        let last = self.before.len() - bins;
        self.before.copy_within(bins.., 0);
        self.before[last..].fill(Complex32::default());
    }

    pub fn forget(&mut self) {
        self.before.fill(Complex32::default());
    }

    /// Looks at the filter after each block; samples per sample that the path has moved, when there is something to say.
    pub fn next(&mut self, weights: &[Complex32]) -> Option<f64> {
        self.age += 1;
        if self.age < self.every {
            return None;
        }
        self.age = 0;
        let (now, then) = self.correlate(weights);
        self.before.copy_from_slice(weights);
        let samples = (self.every * self.block) as f64;
        let (shift, height) = self.best_shift(samples * RANGE);
        (height > SIMILAR * (now * then).sqrt() + 1e-12).then_some(shift / samples)
    }

    /// Fills the cross spectrum, summed over the parts; the two paths' energies.
    fn correlate(&mut self, weights: &[Complex32]) -> (f64, f64) {
        let bins = self.block + 1;
        self.cross.fill(Complex64::default());
        let (mut now, mut then) = (0.0, 0.0);
        for (weights, before) in weights.chunks_exact(bins).zip(self.before.chunks_exact(bins)) {
            for bin in 1..bins {
                let product = weights[bin] * before[bin].conj();
                self.cross[bin] += Complex64::new(product.re.into(), product.im.into());
                now += f64::from(weights[bin].norm_sqr());
                then += f64::from(before[bin].norm_sqr());
            }
        }
        (now, then)
    }

    /// The shift in samples at which both paths are most alike, refined by a parabola, and how alike they are there.
    fn best_shift(&self, furthest: f64) -> (f64, f64) {
        let steps = (furthest / STEP).ceil() as i32;
        let (mut best, mut height) = (0.0, f64::MIN);
        for step in -steps..=steps {
            let here = self.likeness(f64::from(step) * STEP);
            if here > height {
                (best, height) = (f64::from(step) * STEP, here);
            }
        }
        let (below, above) = (self.likeness(best - STEP), self.likeness(best + STEP));
        let curve = below - 2.0 * height + above;
        let refined = if curve < 0.0 { 0.5 * (below - above) / curve * STEP } else { 0.0 };
        (best + refined.clamp(-STEP, STEP), height)
    }

    fn likeness(&self, shift: f64) -> f64 {
        let turn = Complex64::from_polar(1.0, PI * shift / self.block as f64);
        let mut phase = Complex64::new(1.0, 0.0);
        let mut sum = 0.0;
        for cross in &self.cross[1..] {
            phase *= turn;
            sum += (cross * phase).re;
        }
        sum
    }
}
