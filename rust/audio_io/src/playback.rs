//! From 24 kHz mono to the speaker: the half that runs outside of the callback.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rtrb::{Consumer, Producer, RingBuffer};

use crate::drift::{LevelControl, Pace};
use crate::frame::{FRAME_SIZE, SAMPLE_RATE};
use crate::meter::{CallbackTimes, Count, Level};
use crate::playback_callback::PlaybackCallback;
use crate::resample::{ResampleError, Resampler};

/// Seconds that the ring can hold: more than is ever let in, as a skip takes effect at the next callback only.
const RING_SECONDS: f64 = 0.5;
/// Seconds of what was played that wait for the echo canceller at most.
const PLAYED_SECONDS: usize = 2;
/// Most that may wait, in frames.
const MAX_FRAMES: f64 = 2.0;
/// Reserve under the deepest dip, in seconds.
const MARGIN: f64 = 0.012;
/// How late a frame or a callback is always expected to come, in seconds: one block of the speaker, and a little.
const LEAST_JITTER: f64 = 0.024;
/// How much more than the set point may wait when playing begins, in seconds.
const SLACK: f64 = 0.020;
const FRAME_SECONDS: f64 = FRAME_SIZE as f64 / SAMPLE_RATE as f64;

/// What the callback leaves for others to read, and the one thing it is asked to do.
#[derive(Debug, Default)]
pub struct PlaybackMeters {
    /// When and how long the callback ran.
    pub times: CallbackTimes,
    /// Times that the ring ran empty while playing.
    pub underruns: Count,
    /// Samples skipped because too much waited, at the device's rate.
    pub skipped: Count,
    /// Samples of what was played that the echo canceller did not get.
    pub reference_lost: Count,
    /// From the callback to the air, in microseconds; as the backend says.
    pub latency_us: Count,
    /// Loudness of what was played.
    pub level: Level,
    /// Whether sound from the ring is being played.
    pub playing: AtomicBool,
    /// Samples that the callback shall skip.
    pub skip: AtomicU64,
    /// Samples of silence that the callback shall give before the first one after a start or an underrun.
    pub reserve: Count,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Written {
    /// Seconds of sound that waited before this frame.
    pub waited: f64,
    /// Seconds of older sound that were given up for it.
    pub skipped: f64,
}

/// The half that fills the ring.
pub struct PlaybackWriter {
    ring: Producer<f32>,
    resampler: Resampler,
    control: LevelControl,
    converted: Vec<f32>,
    rate: u32,
    last_write_ns: Option<u64>,
    was_playing: bool,
    has_played: bool,
    lost: u64,
    /// What the callback counts.
    pub meters: Arc<PlaybackMeters>,
}

/// Writer, callback, and the ring of what was played, for a device of `channels` channels at `rate` samples per second.
///
/// # Errors
/// `ResampleError::Rate` when the rate is out of range.
pub fn playback_pair(
    rate: u32,
    channels: usize,
) -> Result<(PlaybackWriter, PlaybackCallback, Consumer<f32>), ResampleError> {
    let (producer, consumer) = RingBuffer::new((f64::from(rate) * RING_SECONDS) as usize);
    let (played, reference) = RingBuffer::new(rate as usize * PLAYED_SECONDS);
    let meters = Arc::new(PlaybackMeters::default());
    let control = LevelControl::new(MARGIN, LEAST_JITTER, FRAME_SECONDS, Pace::HEARD);
    meters.reserve.set((control.target() * f64::from(rate)) as u64);
    let writer = PlaybackWriter {
        ring: producer,
        resampler: Resampler::adjustable(SAMPLE_RATE, rate)?,
        control,
        converted: Vec::with_capacity(rate as usize / 5),
        rate,
        last_write_ns: None,
        was_playing: false,
        has_played: false,
        lost: 0,
        meters: meters.clone(),
    };
    let callback = PlaybackCallback::new(consumer, played, channels, rate, meters);
    Ok((writer, callback, reference))
}

impl PlaybackWriter {
    /// Hands over `pcm` (24 kHz, [-1, 1]) at `now_ns`.
    ///
    /// Never lets more than two frames wait, nor more than a little above the set point when playing begins: the oldest
    /// sound is skipped instead, down to the set point, with a fade on both sides of the gap.
    ///
    /// # Errors
    /// `ResampleError::Filter` when the filter fails.
    pub fn write(&mut self, pcm: &[f32], now_ns: u64) -> Result<Written, ResampleError> {
        let waited = self.level(now_ns);
        let begins = self.follow_clock(waited, now_ns);
        self.converted.clear();
        self.resampler.process(pcm, &mut self.converted)?;

        let mut skipped = 0.0;
        let coming = pcm.len() as f64 / f64::from(SAMPLE_RATE);
        let most = if begins { self.control.target() + SLACK } else { MAX_FRAMES * FRAME_SECONDS - coming };
        if waited > most {
            skipped = (waited - self.control.target()).max(0.0);
            let samples = (skipped * f64::from(self.rate)) as u64;
            self.meters.skip.fetch_add(samples, Ordering::Relaxed);
            self.control.restart(waited - skipped);
        }
        // Of the block asked for last, the device has drawn on a part before this frame came.
        let reserve = self.control.target() + self.drawn(now_ns);
        self.meters.reserve.set((reserve * f64::from(self.rate)) as u64);
        if self.ring.slots() < self.converted.len() {
            // The device has stopped asking. A frame that does not get in needs no older sound to make way for it.
            let lost = self.converted.len() as u64;
            self.lost += lost;
            let less = |skip: u64| Some(skip.saturating_sub(lost));
            let _ = self.meters.skip.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            return Ok(Written { waited, skipped });
        }
        for &sample in &self.converted {
            // There is room: only this side fills the ring.
            let _ = self.ring.push(sample);
        }
        Ok(Written { waited, skipped })
    }

    /// Adjusts the resampler to the device's clock; true where playing has begun since the last frame.
    fn follow_clock(&mut self, level: f64, now_ns: u64) -> bool {
        let playing = self.meters.playing.load(Ordering::Relaxed);
        let begins = playing && !self.was_playing;
        if let Some(last) = self.last_write_ns {
            let dt = now_ns.saturating_sub(last) as f64 * 1e-9;
            // While silent the level says nothing about the clocks; just after, it starts anew.
            if begins && !self.has_played {
                self.control.begin(level.min(self.control.target() + SLACK));
                self.has_played = true;
            } else if begins {
                self.control.restart(level);
            } else if playing && dt > 0.0 && dt < 1.0 {
                self.resampler.adjust(self.control.update(level, dt));
            }
        }
        self.was_playing = playing;
        self.last_write_ns = Some(now_ns);
        begins
    }

    /// Seconds of sound that wait at `now_ns`, less what the device has drawn on since its last callback.
    pub fn level(&self, now_ns: u64) -> f64 {
        let capacity = self.ring.buffer().capacity();
        let waiting = (capacity - self.ring.slots()) as u64;
        let waiting = waiting.saturating_sub(self.meters.skip.load(Ordering::Relaxed)) as f64;
        let drawn = if self.meters.playing.load(Ordering::Relaxed) { self.drawn(now_ns) } else { 0.0 };
        waiting / f64::from(self.rate) - drawn
    }

    /// Seconds of its last block that the device has drawn on at `now_ns`.
    fn drawn(&self, now_ns: u64) -> f64 {
        let since = now_ns.saturating_sub(self.meters.times.last_ns.get()) as f64 * 1e-9;
        let period = self.meters.times.frames.get() as f64 / f64::from(self.rate);
        since.min(period)
    }

    /// Whether a frame would be let in without skipping anything and without building up a queue.
    pub fn has_room(&self, now_ns: u64) -> bool {
        self.level(now_ns) <= self.control.target()
    }

    /// Where the level should be just before a frame comes, in seconds.
    pub fn set_point(&self) -> f64 {
        self.control.target()
    }

    /// How much faster the writer's clock runs than the device's, in parts per million, as learned so far.
    pub fn drift_ppm(&self) -> f64 {
        self.control.drift_ppm()
    }

    /// The resampler's delay in seconds.
    pub fn filter_delay(&self) -> f64 {
        self.resampler.delay() / f64::from(self.rate)
    }

    /// Samples that found no room at all: the device has stopped asking.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The device's rate.
    pub fn rate(&self) -> u32 {
        self.rate
    }
}
