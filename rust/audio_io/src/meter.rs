//! Numbers that the callbacks leave for others to read: plain atomics, no lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// A count or a measure that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Replaces it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Raises it to `n` if that is more.
    pub fn raise(&self, n: u64) {
        self.0.fetch_max(n, Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Loudness of the last stretch: falls by half in about 100 ms, rises at once.
#[derive(Debug, Default)]
pub struct Level(AtomicU32);

impl Level {
    /// Takes the mean square of a stretch of `seconds`.
    pub fn update(&self, mean_square: f32, seconds: f32) {
        let old = f32::from_bits(self.0.load(Relaxed));
        let kept = old * (1.0 - (seconds * 7.0).min(1.0));
        self.0.store(mean_square.max(kept).to_bits(), Relaxed);
    }

    /// In dB below full scale; -120 for silence.
    pub fn db(&self) -> f64 {
        power_db(f64::from(f32::from_bits(self.0.load(Relaxed))))
    }
}

/// Power in dB, at least -120.
pub fn power_db(power: f64) -> f64 {
    10.0 * power.max(1e-12).log10()
}

/// When a callback ran and how long it took.
#[derive(Debug, Default)]
pub struct CallbackTimes {
    /// Calls so far.
    pub calls: Count,
    /// Frames of the last call.
    pub frames: Count,
    /// Start of the last call, in nanoseconds of the engine's clock.
    pub last_ns: Count,
    /// Time spent in calls.
    pub total_ns: Count,
    /// Longest call.
    pub worst_ns: Count,
    /// Longest time between the starts of two calls.
    pub worst_gap_ns: Count,
}

impl CallbackTimes {
    /// Notes the start of a call.
    pub fn begin(&self, now_ns: u64, frames: usize) {
        let last = self.last_ns.get();
        if self.calls.get() > 0 {
            self.worst_gap_ns.raise(now_ns.saturating_sub(last));
        }
        self.calls.add(1);
        self.frames.set(frames as u64);
        self.last_ns.set(now_ns);
    }

    /// Notes its end.
    pub fn end(&self, spent_ns: u64) {
        self.total_ns.add(spent_ns);
        self.worst_ns.raise(spent_ns);
    }
}
