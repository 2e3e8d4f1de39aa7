//! From the microphone's callback to 24 kHz mono.

use std::sync::Arc;

use cpal::{FromSample, I24, Sample};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::frame::SAMPLE_RATE;
use crate::meter::{CallbackTimes, Count, Level};
use crate::resample::{ResampleError, Resampler};

/// Seconds of sound that the ring holds while nobody drains it.
const RING_SECONDS: usize = 2;

/// What the callback leaves for others to read.
#[derive(Debug, Default)]
pub struct CaptureMeters {
    /// When and how long the callback ran.
    pub times: CallbackTimes,
    /// Samples that came in, at the device's rate.
    pub captured: Count,
    /// Samples lost because the ring was full.
    pub overrun: Count,
    /// Times that this happened.
    pub overruns: Count,
    /// Samples since the last one that was not exactly zero.
    pub zeros: Count,
    /// From the air to the callback, for the last sample of a block, in microseconds; as the backend says.
    pub latency_us: Count,
    /// Loudness of the microphone.
    pub level: Level,
}

/// The half that runs in the device's callback: takes no lock, makes no system call, allocates nothing.
pub struct CaptureCallback {
    ring: Producer<f32>,
    channels: usize,
    rate: u32,
    meters: Arc<CaptureMeters>,
}

/// The half that runs on the engine's thread.
pub struct CaptureReader {
    ring: Consumer<f32>,
    resampler: Resampler,
    raw: Vec<f32>,
    rate: u32,
    /// What the callback counted.
    pub meters: Arc<CaptureMeters>,
}

/// Both halves for a device of `channels` channels at `rate` samples per second.
///
/// # Errors
/// `ResampleError::Rate` when the rate is out of range.
pub fn capture_pair(rate: u32, channels: usize) -> Result<(CaptureCallback, CaptureReader), ResampleError> {
    let (producer, consumer) = RingBuffer::new(rate as usize * RING_SECONDS);
    let meters = Arc::new(CaptureMeters::default());
    let resampler = Resampler::new(rate, SAMPLE_RATE)?;
    let callback =
        CaptureCallback { ring: producer, channels: channels.max(1), rate, meters: meters.clone() };
    let raw = Vec::with_capacity(rate as usize * RING_SECONDS);
    Ok((callback, CaptureReader { ring: consumer, resampler, raw, rate, meters }))
}

impl CaptureCallback {
    /// Takes a block of interleaved samples that came in at `now_ns`.
    ///
    /// Of more than two channels only the first two are heard: others are line inputs or loopbacks.
    pub fn take<T>(&mut self, data: &[T], now_ns: u64, latency_us: u64)
    where
        T: Sample,
        f32: FromSample<T>,
    {
        self.take_by(f32::from_sample, data, now_ns, latency_us);
    }

    /// The same for samples of 24 bits in 32, of which sound systems leave the upper eight as they happen to be.
    pub fn take_24(&mut self, data: &[I24], now_ns: u64, latency_us: u64) {
        self.take_by(|sample: I24| f32::from_sample(sample.inner() << 8), data, now_ns, latency_us);
    }

    fn take_by<T: Copy>(&mut self, value: impl Fn(T) -> f32, data: &[T], now_ns: u64, latency_us: u64) {
        let frames = data.len() / self.channels;
        self.meters.times.begin(now_ns, frames);
        self.meters.latency_us.set(latency_us);
        let used = self.channels.min(2);
        let gain = 1.0 / used as f32;
        let room = self.ring.slots().min(frames);
        let mut power = 0.0;
        let mut zeros = self.meters.zeros.get();
        for (i, frame) in data.chunks_exact(self.channels).enumerate() {
            let mut sample = 0.0;
            for &channel in &frame[..used] {
                sample += value(channel);
            }
            sample *= gain;
            if !sample.is_finite() {
                sample = 0.0;
            }
            power += sample * sample;
            zeros = if sample == 0.0 { zeros + 1 } else { 0 };
            if i < room {
                // There is room: only this side fills the ring.
                let _ = self.ring.push(sample);
            }
        }
        self.meters.zeros.set(zeros);
        self.meters.captured.add(frames as u64);
        if room < frames {
            self.meters.overrun.add((frames - room) as u64);
            self.meters.overruns.add(1);
        }
        if frames > 0 {
            self.meters.level.update(power / frames as f32, frames as f32 / self.rate as f32);
        }
    }
}

impl CaptureReader {
    /// Appends everything that has come in, at 24 kHz, to `output`.
    ///
    /// # Errors
    /// `ResampleError::Filter` when the filter fails.
    pub fn drain(&mut self, output: &mut Vec<f32>) -> Result<(), ResampleError> {
        self.raw.clear();
        if let Ok(chunk) = self.ring.read_chunk(self.ring.slots()) {
            let (first, second) = chunk.as_slices();
            self.raw.extend_from_slice(first);
            self.raw.extend_from_slice(second);
            chunk.commit_all();
        }
        self.resampler.process(&self.raw, output)
    }

    /// Sound in the ring, in seconds.
    pub fn level(&self) -> f64 {
        self.ring.slots() as f64 / f64::from(self.rate)
    }

    /// The resampler's delay in seconds.
    pub fn filter_delay(&self) -> f64 {
        self.resampler.delay() / f64::from(SAMPLE_RATE)
    }

    /// Seconds of exact zeros at the end of what came in: a microphone that was refused gives nothing else.
    pub fn zero_seconds(&self) -> f64 {
        self.meters.zeros.get() as f64 / f64::from(self.rate)
    }

    /// The device's rate.
    pub fn rate(&self) -> u32 {
        self.rate
    }
}
