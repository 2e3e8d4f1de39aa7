//! What was played, on the microphone's clock: delayed by a little, and by ever more or less as the clocks drift.

use crate::echo_filter::EchoFilter;

/// Length of the interpolation filter.
const TAPS: usize = 32;
/// Steps between two samples in the table; linear between them.
const PHASES: usize = 256;
/// The faster of two working clocks is never further ahead.
const MAX_RATE: f64 = 3e-4;

/// The played signal as `x(n - lag)`, with a lag that moves by `rate` samples per sample.
///
/// The lag stays small: when it leaves its range it jumps by a whole block, and the filter's parts move along by one, so
/// that nothing is heard of it.
pub(crate) struct Reference {
    block: usize,
    history: Vec<f32>,
    table: Vec<f32>,
    bent: Vec<f32>,
    lag: f64,
    rate: f64,
}

impl Reference {
    pub fn new(block: usize) -> Self {
        Self {
            block,
            history: vec![0.0; 4 * block],
            table: sinc_table(),
            bent: vec![0.0; block],
            lag: (TAPS + 16) as f64,
            rate: 0.0,
        }
    }

    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Corrects the rate by what the filter still had to follow.
    pub fn adjust(&mut self, by: f64) {
        self.rate = (self.rate + by).clamp(-MAX_RATE, MAX_RATE);
    }

    /// Takes the next block that was played and hands it to the filter.
    pub fn advance(&mut self, played: &[f32], filter: &mut EchoFilter) {
        let block = self.block;
        self.history.copy_within(block.., 0);
        let start = self.history.len() - block;
        self.history[start..].copy_from_slice(played);
        let highest = (TAPS + 16) as f64 + block as f64 * 1.5;
        let next = self.lag + self.rate * block as f64;
        if next < (TAPS / 2 + 1) as f64 {
            // A block later: the filter keeps its newest block, and is a block shorter before the echo.
            self.lag += block as f64;
            filter.move_earlier();
            return;
        }
        if next > highest {
            // A block earlier: two blocks come at once.
            self.render();
            filter.push(&self.bent);
            filter.move_later();
            self.lag -= block as f64;
        }
        self.render();
        filter.push(&self.bent);
    }

    fn render(&mut self) {
        let start = self.history.len() - self.block;
        for i in 0..self.block {
            self.lag += self.rate;
            let at = (start + i) as f64 - self.lag;
            let whole = at as usize;
            let fine = (at - whole as f64) * PHASES as f64;
            let phase = (fine as usize).min(PHASES - 1);
            let part = (fine - phase as f64) as f32;
            let heard = &self.history[whole + 1 - TAPS / 2..][..TAPS];
            let (low, high) = self.table[phase * TAPS..][..2 * TAPS].split_at(TAPS);
            let weights = low.iter().zip(high).map(|(a, b)| a + part * (b - a));
            self.bent[i] = heard.iter().zip(weights).map(|(x, w)| x * w).sum();
        }
    }
}

/// Windowed sinc: the weights of `TAPS` samples for each of `PHASES + 1` places between the middle two.
fn sinc_table() -> Vec<f32> {
    let mut table = Vec::with_capacity((PHASES + 1) * TAPS);
    for phase in 0..=PHASES {
        let weights: [f64; TAPS] = std::array::from_fn(|tap| {
            let distance = phase as f64 / PHASES as f64 + (TAPS / 2 - 1) as f64 - tap as f64;
            let x = std::f64::consts::PI * distance;
            let sinc = if distance.abs() < 1e-9 { 1.0 } else { x.sin() / x };
            sinc * (x / (TAPS + 2) as f64).cos().powi(2)
        });
        let sum: f64 = weights.iter().sum();
        table.extend(weights.iter().map(|w| (w / sum) as f32));
    }
    table
}
