//! The frames that the model hears, and the rule that keeps them from growing old.

use std::collections::VecDeque;

/// Samples per second on the model's side.
pub const SAMPLE_RATE: u32 = 24_000;
/// Samples in a frame: 80 ms.
pub const FRAME_SIZE: usize = 1_920;

/// 80 ms of microphone sound.
#[derive(Debug, Clone)]
pub struct Frame {
    /// `FRAME_SIZE` samples at 24 kHz.
    pub pcm: Vec<f32>,
    /// When its last sample arrived, in nanoseconds of the engine's clock.
    pub ready_ns: u64,
}

/// Cuts a stream into frames and holds those that the model has not taken yet.
///
/// When more than `max_lag` samples wait, all whole frames but the newest are dropped, oldest first: the listener is
/// then within one frame of real time again, instead of late for the rest of the conversation.
pub struct FrameQueue {
    frames: VecDeque<Frame>,
    partial: Vec<f32>,
    max_lag: usize,
    dropped: u64,
    made: u64,
}

impl FrameQueue {
    /// A queue that lets `max_lag` samples wait.
    pub fn new(max_lag: usize) -> Self {
        Self {
            frames: VecDeque::with_capacity(max_lag / FRAME_SIZE + 2),
            partial: Vec::with_capacity(FRAME_SIZE),
            max_lag: max_lag.max(FRAME_SIZE),
            dropped: 0,
            made: 0,
        }
    }

    /// Appends samples that arrived by `now_ns`; gives the number of frames dropped.
    pub fn push(&mut self, mut samples: &[f32], now_ns: u64) -> u64 {
        while !samples.is_empty() {
            let take = samples.len().min(FRAME_SIZE - self.partial.len());
            self.partial.extend_from_slice(&samples[..take]);
            samples = &samples[take..];
            if self.partial.len() == FRAME_SIZE {
                let pcm = std::mem::replace(&mut self.partial, Vec::with_capacity(FRAME_SIZE));
                self.frames.push_back(Frame { pcm, ready_ns: now_ns });
                self.made += 1;
            }
        }
        let before = self.frames.len();
        if self.waiting() > self.max_lag && before > 1 {
            self.frames.drain(..before - 1);
        }
        let dropped = (before - self.frames.len()) as u64;
        self.dropped += dropped;
        dropped
    }

    /// Counts frames that nobody could have read in time, without making them.
    pub fn drop_unmade(&mut self, frames: u64) {
        self.made += frames;
        self.dropped += frames;
    }

    /// The oldest frame, if a whole one waits.
    pub fn pop(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    /// Samples that wait, the unfinished frame included.
    pub fn waiting(&self) -> usize {
        self.frames.len() * FRAME_SIZE + self.partial.len()
    }

    /// Frames dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Frames completed so far, dropped ones included.
    pub fn made(&self) -> u64 {
        self.made
    }

    /// Samples that came in so far.
    pub fn received(&self) -> u64 {
        self.made * FRAME_SIZE as u64 + self.partial.len() as u64
    }

    /// Forgets everything that waits (not counted as dropped): a conversation begins now.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(from: usize, len: usize) -> Vec<f32> {
        (from..from + len).map(|i| i as f32).collect()
    }

    #[test]
    fn samples_come_out_in_order_whatever_the_pieces() {
        let mut queue = FrameQueue::new(10 * FRAME_SIZE);
        for (i, piece) in numbered(0, 3 * FRAME_SIZE + 7).chunks(441).enumerate() {
            queue.push(piece, i as u64);
        }
        let taken: Vec<f32> = std::iter::from_fn(|| queue.pop()).flat_map(|f| f.pcm).collect();
        assert_eq!(taken, numbered(0, 3 * FRAME_SIZE));
        assert_eq!(queue.waiting(), 7);
    }

    #[test]
    fn a_stall_of_two_seconds_leaves_less_than_two_frames_waiting() {
        let mut queue = FrameQueue::new(5 * FRAME_SIZE);
        let mut dropped = 0;
        for i in 0..200 {
            dropped += queue.push(&numbered(i * 240, 240), i as u64);
            assert!(queue.waiting() <= 5 * FRAME_SIZE + 240);
        }
        assert_eq!(queue.dropped(), dropped);
        assert_eq!(queue.made(), 25);
        // What is left is the newest: every frame was either dropped or still waits.
        let left = queue.frames.len() as u64;
        assert_eq!(dropped + left, 25);
        let last = queue.frames.back().unwrap().pcm[FRAME_SIZE - 1];
        assert_eq!(last as usize, 25 * FRAME_SIZE - 1);
    }

    #[test]
    fn a_short_hiccup_drops_nothing() {
        let mut queue = FrameQueue::new(5 * FRAME_SIZE);
        queue.push(&numbered(0, 4 * FRAME_SIZE), 0);
        assert_eq!((queue.dropped(), queue.waiting()), (0, 4 * FRAME_SIZE));
    }
}
