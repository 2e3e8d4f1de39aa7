//! Fourier transforms of two blocks of samples, with their scratch space.

use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

/// Transforms `2 * block` real samples to `block + 1` bins and back, without allocating.
pub(crate) struct Transform {
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
    forward_scratch: Vec<Complex32>,
    inverse_scratch: Vec<Complex32>,
    /// Work space of `2 * block` samples: the input of `forward`, the output of `inverse`.
    pub time: Vec<f32>,
}

impl Transform {
    pub fn new(block: usize) -> Self {
        let mut planner = RealFftPlanner::new();
        let forward = planner.plan_fft_forward(2 * block);
        let inverse = planner.plan_fft_inverse(2 * block);
        let forward_scratch = forward.make_scratch_vec();
        let inverse_scratch = inverse.make_scratch_vec();
        Self { forward, inverse, forward_scratch, inverse_scratch, time: vec![0.0; 2 * block] }
    }

    /// The spectrum of `time`, which is used up.
    pub fn forward(&mut self, bins: &mut [Complex32]) {
        let done = self.forward.process_with_scratch(&mut self.time, bins, &mut self.forward_scratch);
        debug_assert!(done.is_ok(), "all lengths come from `new`");
    }

    /// The samples of a spectrum, to `time`; the spectrum is used up.
    pub fn inverse(&mut self, bins: &mut [Complex32]) {
        if let [first, .., last] = bins {
            first.im = 0.0;
            last.im = 0.0;
        }
        let done = self.inverse.process_with_scratch(bins, &mut self.time, &mut self.inverse_scratch);
        debug_assert!(done.is_ok(), "all lengths come from `new`");
        let scale = 1.0 / self.time.len() as f32;
        self.time.iter_mut().for_each(|x| *x *= scale);
    }
}
