//! Going silent and coming back without a click.

use std::f32::consts::PI;

/// Length of a fade in seconds.
pub const FADE_SECONDS: f64 = 0.005;

/// A raised cosine from 0 to 1, computed once so that the callback only looks it up.
#[derive(Debug, Clone)]
pub struct FadeCurve(Vec<f32>);

impl FadeCurve {
    /// A curve of `FADE_SECONDS` at `rate` samples per second.
    pub fn new(rate: u32) -> Self {
        let len = ((FADE_SECONDS * f64::from(rate)) as usize).max(2);
        Self((0..len).map(|i| 0.5 - 0.5 * (PI * (i + 1) as f32 / (len + 1) as f32).cos()).collect())
    }

    /// Number of samples in the fade.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never true; a fade has at least two samples.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gain of the `i`th sample when fading in.
    pub fn rising(&self, i: usize) -> f32 {
        self.0.get(i).copied().unwrap_or(1.0)
    }

    /// Gain of the `i`th sample when fading out.
    pub fn falling(&self, i: usize) -> f32 {
        let len = self.0.len();
        if i < len { self.0[len - 1 - i] } else { 0.0 }
    }
}
