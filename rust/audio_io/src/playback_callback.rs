//! The half of playback that runs in the device's callback: takes no lock, makes no system call, allocates nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cpal::{FromSample, Sample};
use rtrb::{Consumer, Producer};

use crate::fade::FadeCurve;
use crate::playback::PlaybackMeters;

/// The loudest that is played: the next louder number is one more than a sample of 24 bits holds, and would wrap around.
const LOUDEST: f32 = 1.0 - f32::EPSILON / 2.0;

/// What is being done with the ring's sound.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Nothing to play; counts the samples of silence given since there is.
    Silent { given: usize },
    /// The first samples, ever louder.
    FadeIn { at: usize },
    /// The sound as it is.
    Playing,
    /// The last samples before a skip, ever quieter.
    FadeOut { at: usize },
    /// The ring ran empty: its last value dies away.
    Tail { at: usize, value: f32 },
}

/// Takes sound from the ring, plays it on every channel, and notes what was really played.
pub struct PlaybackCallback {
    ring: Consumer<f32>,
    played: Producer<f32>,
    channels: usize,
    rate: u32,
    curve: FadeCurve,
    state: State,
    last: f32,
    meters: Arc<PlaybackMeters>,
}

impl PlaybackCallback {
    pub(crate) fn new(
        ring: Consumer<f32>,
        played: Producer<f32>,
        channels: usize,
        rate: u32,
        meters: Arc<PlaybackMeters>,
    ) -> Self {
        Self {
            ring,
            played,
            channels: channels.max(1),
            rate,
            curve: FadeCurve::new(rate),
            state: State::Silent { given: 0 },
            last: 0.0,
            meters,
        }
    }

    /// Fills a block of interleaved samples; `now_ns` is the engine's clock, `latency_us` the backend's word on when
    /// the block's first sample will be heard.
    pub fn fill<T>(&mut self, data: &mut [T], now_ns: u64, latency_us: u64)
    where
        T: Sample + FromSample<f32>,
    {
        let frames = data.len() / self.channels;
        self.meters.times.begin(now_ns, frames);
        self.meters.latency_us.set(latency_us);
        self.begin_skip();
        let room = self.played.slots().min(frames);
        let mut power = 0.0;
        for (i, frame) in data.chunks_exact_mut(self.channels).enumerate() {
            let sample = self.next().clamp(-1.0, LOUDEST);
            self.last = sample;
            power += sample * sample;
            frame.fill(T::from_sample(sample));
            if i < room {
                // There is room: only this side fills the ring.
                let _ = self.played.push(sample);
            }
        }
        self.meters.reference_lost.add((frames - room) as u64);
        let playing = !matches!(self.state, State::Silent { .. } | State::Tail { .. });
        self.meters.playing.store(playing, Ordering::Relaxed);
        if frames > 0 {
            self.meters.level.update(power / frames as f32, frames as f32 / self.rate as f32);
        }
    }

    /// Starts fading out when a skip was asked for; what is silent anyway is skipped at once.
    fn begin_skip(&mut self) {
        if self.meters.skip.load(Ordering::Relaxed) == 0 {
            return;
        }
        match self.state {
            State::Playing => self.state = State::FadeOut { at: 0 },
            // Half way in: what has risen so far falls from there.
            State::FadeIn { at } => self.state = State::FadeOut { at: self.curve.len().saturating_sub(at) },
            State::Silent { .. } => self.skip(),
            State::FadeOut { .. } | State::Tail { .. } => {}
        }
    }

    fn skip(&mut self) {
        let asked = self.meters.skip.swap(0, Ordering::Relaxed) as usize;
        let count = asked.min(self.ring.slots());
        if let Ok(chunk) = self.ring.read_chunk(count) {
            chunk.commit_all();
            self.meters.skipped.add(count as u64);
        }
    }

    /// The next sample to play.
    fn next(&mut self) -> f32 {
        if let State::Silent { given } = &mut self.state {
            if self.ring.is_empty() {
                return 0.0;
            }
            if *given < self.meters.reserve.get() as usize {
                *given += 1;
                return 0.0;
            }
            self.state = State::FadeIn { at: 0 };
        }
        if let State::Tail { at, value } = self.state {
            let gain = self.curve.falling(at);
            let over = at + 1 >= self.curve.len();
            self.state = if over { State::Silent { given: 0 } } else { State::Tail { at: at + 1, value } };
            return value * gain;
        }
        let Ok(sample) = self.ring.pop() else {
            self.meters.underruns.add(1);
            self.state = State::Tail { at: 1, value: self.last };
            return self.last * self.curve.falling(0);
        };
        match self.state {
            State::FadeIn { at } => {
                let next = at + 1;
                self.state =
                    if next >= self.curve.len() { State::Playing } else { State::FadeIn { at: next } };
                sample * self.curve.rising(at)
            }
            State::FadeOut { at } => {
                if at + 1 >= self.curve.len() {
                    self.skip();
                    self.state = State::FadeIn { at: 0 };
                } else {
                    self.state = State::FadeOut { at: at + 1 };
                }
                sample * self.curve.falling(at)
            }
            _ => sample,
        }
    }
}
