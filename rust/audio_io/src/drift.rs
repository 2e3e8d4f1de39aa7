//! Keeps a ring between two clocks at its set point by nudging the rate of the resampler that fills it.

/// Time constant in which the worst jitter seen is forgotten, in seconds: a machine that stalled once in ten minutes does
/// so again.
const MEMORY: f64 = 1200.0;
/// Most that the level's error may add to the clocks' difference.
const MAX_CORRECTION: f64 = 0.001;
/// Largest difference between two clocks that is followed.
const MAX_DRIFT: f64 = 0.002;

/// How fast a loop reacts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Time constant of the level's average, in seconds.
    smoothing: f64,
    /// Natural frequency of the loop in radians per second.
    speed: f64,
}

impl Pace {
    /// For what is listened to: slow enough that no pitch change is heard.
    pub const HEARD: Self = Self { smoothing: 3.0, speed: 0.05 };
    /// For the echo canceller's reference: so steady that the echo's path seems not to move.
    pub const STEADY: Self = Self { smoothing: 20.0, speed: 0.01 };
}

/// A critically damped proportional-integral loop on a ring's level, in seconds of sound.
///
/// The set point is not fixed: it is the smallest level at which the deepest dip seen lately still leaves `margin`.
#[derive(Debug, Clone)]
pub struct LevelControl {
    pace: Pace,
    margin: f64,
    ceiling: f64,
    least: f64,
    mean: f64,
    jitter: f64,
    target: f64,
    drift: f64,
    seen: f64,
}

impl LevelControl {
    /// A loop that keeps `margin` seconds in reserve, expects dips of `least` seconds until it has seen deeper ones, and
    /// never aims above `ceiling`.
    pub fn new(margin: f64, least: f64, ceiling: f64, pace: Pace) -> Self {
        let target = (margin + least).min(ceiling);
        Self { pace, margin, ceiling, least, mean: 0.0, jitter: least, target, drift: 0.0, seen: 0.0 }
    }

    /// Takes a level measured `dt` seconds after the one before; gives the relative rate change to apply.
    pub fn update(&mut self, level: f64, dt: f64) -> f64 {
        let Pace { smoothing, speed } = self.pace;
        self.seen += dt;
        let weight = dt / (smoothing.min(self.seen) + dt);
        self.mean += weight * (level - self.mean);
        self.jitter = (self.mean - level).max(self.jitter * (1.0 - dt / MEMORY)).max(self.least);
        let wanted = (self.margin + self.jitter).min(self.ceiling);
        self.target += (dt / (smoothing + dt)) * (wanted - self.target);
        let error = self.mean - self.target;
        self.drift = (self.drift + speed * speed * error * dt).clamp(-MAX_DRIFT, MAX_DRIFT);
        let correction = (2.0 * speed * error).clamp(-MAX_CORRECTION, MAX_CORRECTION);
        -(self.drift + correction)
    }

    /// Starts the average anew at `level`, keeping what was learned about the clocks: the ring was emptied or skipped.
    pub fn restart(&mut self, level: f64) {
        self.mean = level;
        self.seen = self.pace.smoothing;
    }

    /// Begins at `level`, whatever it is: nothing is known yet for which the pitch should be changed.
    pub fn begin(&mut self, level: f64) {
        self.restart(level);
        self.jitter = (level.min(self.ceiling) - self.margin).max(0.0);
        self.target = self.margin + self.jitter;
    }

    /// Where the level should be, in seconds.
    pub fn target(&self) -> f64 {
        self.target
    }

    /// The average level, in seconds.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// How much faster the filling clock runs than the emptying one, in parts per million.
    pub fn drift_ppm(&self) -> f64 {
        self.drift * 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring filled by a clock that is `ppm` too fast, watched every 80 ms.
    fn run(ppm: f64, seconds: f64, jitter: f64) -> (LevelControl, f64, f64) {
        let mut control = LevelControl::new(0.012, 0.0, 0.08, Pace::HEARD);
        let (mut level, mut low, mut high) = (0.02, f64::MAX, f64::MIN);
        let mut adjust = 0.0;
        let mut noise = 1u32;
        for _ in 0..(seconds / 0.08) as usize {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let late = f64::from(noise >> 16) / 65_536.0 * jitter;
            level += 0.08 * (ppm * 1e-6 + adjust);
            adjust = control.update(level - late, 0.08);
            low = f64::min(low, level - late);
            high = f64::max(high, level);
        }
        (control, low, high)
    }

    #[test]
    fn a_drift_of_500_ppm_is_learned_and_the_level_stays_near_its_set_point() {
        for ppm in [-500.0, 500.0] {
            let (control, low, high) = run(ppm, 600.0, 0.0);
            println!("{ppm}: low {low} high {high} {control:?}");
            assert!((control.drift_ppm() - ppm).abs() < 5.0, "{ppm}: learned {}", control.drift_ppm());
            assert!(low > 0.005 && high < 0.035, "{ppm}: level went from {low} to {high} s");
        }
    }

    #[test]
    fn the_set_point_covers_the_dips_that_are_always_expected_however_quiet_the_device() {
        let mut control = LevelControl::new(0.012, 0.024, 0.08, Pace::HEARD);
        for _ in 0..45_000 {
            control.update(0.036, 0.08);
        }
        assert!((control.target() - 0.036).abs() < 1e-9, "set point {} s after an hour", control.target());
    }

    #[test]
    fn jitter_raises_the_set_point_instead_of_emptying_the_ring() {
        let (control, _, _) = run(0.0, 120.0, 0.03);
        assert!(control.target() > 0.022, "set point {} s", control.target());
        let (quiet, _, _) = run(0.0, 120.0, 0.0);
        assert!(quiet.target() < 0.015, "set point {} s", quiet.target());
    }
}
