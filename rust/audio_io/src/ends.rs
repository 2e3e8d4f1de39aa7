//! The two ends of the engine: what reaches the model from the microphone, and the speaker from the model.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::capture::CaptureReader;
use crate::echo::EchoCanceller;
use crate::frame::SAMPLE_RATE;
use crate::meter::{Level, power_db};
use crate::playback::PlaybackWriter;
use crate::reference::PlayedReference;
use crate::resample::ResampleError;

/// Without sound for so long, silence is put in its place, so that the conversation goes on.
const PATIENCE_NS: u64 = 250_000_000;
/// Zeros for so long are no silence: the microphone is refused or muted.
const ZEROS_SECONDS: f64 = 3.0;

/// Played sound above this power (-60 dB) can be heard by a microphone.
const AUDIBLE: f64 = 1e-6;

/// Locks without giving up when another thread died with the lock.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is added up over all streams that a line has had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InputTotals {
    /// Samples lost in the ring, in milliseconds.
    pub overrun_ms: u64,
    /// Times that this happened.
    pub overruns: u64,
}

/// The microphone's half that the engine's thread owns.
#[derive(Default)]
pub struct InputEnd {
    /// The running stream's reader.
    pub reader: Option<CaptureReader>,
    /// From streams that have ended.
    pub past: InputTotals,
    covered_ns: u64,
    wanted: bool,
    replaced: bool,
    hinted: bool,
}

impl InputEnd {
    /// An end that gives silence when there is no microphone, if one is `wanted`.
    pub fn new(wanted: bool) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Replaces `output` with everything that came in by `now_ns`, or with silence if nothing has for a while.
    pub fn drain(&mut self, now_ns: u64, output: &mut Vec<f32>) {
        output.clear();
        if let Some(reader) = &mut self.reader
            && reader.drain(output).is_err()
        {
            // The filter can't fail on lengths that it was made for; if it does, what it has is silence.
            output.clear();
        }
        let gap_ns = now_ns.saturating_sub(self.covered_ns);
        if !output.is_empty() || self.covered_ns == 0 {
            self.replaced = false;
        } else if self.wanted && (self.replaced || gap_ns > PATIENCE_NS) {
            self.replaced = true;
            output.resize((gap_ns as f64 * 1e-9 * f64::from(SAMPLE_RATE)) as usize, 0.0);
        } else {
            return;
        }
        self.covered_ns = now_ns.max(1);
    }

    /// Whether to tell the user, once, that nothing but zeros comes in.
    pub fn only_zeros(&mut self) -> bool {
        let zeros = self.reader.as_ref().is_some_and(|r| r.zero_seconds() >= ZEROS_SECONDS);
        let tell = zeros && !self.hinted;
        self.hinted = zeros;
        tell
    }

    /// Takes the reader away and keeps what it counted.
    pub fn close(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.past = self.totals_with(&reader);
        }
        self.hinted = false;
    }

    fn totals_with(&self, reader: &CaptureReader) -> InputTotals {
        let lost = reader.meters.overrun.get() * 1_000 / u64::from(reader.rate());
        InputTotals {
            overrun_ms: self.past.overrun_ms + lost,
            overruns: self.past.overruns + reader.meters.overruns.get(),
        }
    }

    /// Over all streams.
    pub fn totals(&self) -> InputTotals {
        self.reader.as_ref().map_or(self.past, |reader| self.totals_with(reader))
    }
}

/// What is added up over all streams that the speaker has had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputTotals {
    /// Times that the ring ran empty while playing.
    pub underruns: u64,
    /// Sound skipped because too much waited, in milliseconds.
    pub skipped_ms: u64,
}

/// The speaker's half that writers own.
#[derive(Default)]
pub struct OutputEnd {
    /// The running stream's writer.
    pub writer: Option<PlaybackWriter>,
    /// From streams that have ended.
    pub past: OutputTotals,
    /// Frames written while there was no speaker.
    pub unheard: u64,
    /// Seconds of sound that waited before the last frame.
    pub waited: f64,
}

impl OutputEnd {
    /// Takes the writer away and keeps what it counted.
    pub fn close(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.past = self.totals_with(&writer);
        }
    }

    fn totals_with(&self, writer: &PlaybackWriter) -> OutputTotals {
        let skipped = writer.meters.skipped.get() * 1_000 / u64::from(writer.rate());
        OutputTotals {
            underruns: self.past.underruns + writer.meters.underruns.get(),
            skipped_ms: self.past.skipped_ms + skipped,
        }
    }

    /// Over all streams.
    pub fn totals(&self) -> OutputTotals {
        self.writer.as_ref().map_or(self.past, |writer| self.totals_with(writer))
    }
}

/// Echo cancellation between the ends, and how well it does.
#[derive(Default)]
pub struct EchoEnd {
    /// None when it is off.
    pub canceller: Option<Box<EchoCanceller>>,
    /// What was played; none while there is no speaker.
    pub reference: Option<PlayedReference>,
    /// Loudness of what the model hears.
    pub level: Level,
    played: Vec<f32>,
    before: f64,
    after: f64,
}

impl EchoEnd {
    /// An end with this canceller, or with none.
    pub fn new(canceller: Option<Box<EchoCanceller>>) -> Self {
        Self { canceller, ..Self::default() }
    }

    /// Replaces `clean` with `mic` less the echo of what was played.
    ///
    /// # Errors
    /// `ResampleError::Filter` when the filter fails.
    pub fn process(&mut self, mic: &[f32], clean: &mut Vec<f32>) -> Result<(), ResampleError> {
        self.played.clear();
        match &mut self.reference {
            Some(reference) => reference.take(mic.len(), &mut self.played)?,
            None => self.played.resize(mic.len(), 0.0),
        }
        clean.clear();
        clean.extend_from_slice(mic);
        if let Some(canceller) = &mut self.canceller {
            // Refused only for unequal lengths; these are equal.
            let _ = canceller.process(clean, &self.played);
        }
        self.measure(mic, clean);
        Ok(())
    }

    /// Echo is judged where something is played, over the last seconds.
    fn measure(&mut self, mic: &[f32], clean: &[f32]) {
        if mic.is_empty() {
            return;
        }
        let power = |x: &[f32]| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len().max(1) as f64;
        let seconds = mic.len() as f64 / f64::from(SAMPLE_RATE);
        self.level.update(power(clean) as f32, seconds as f32);
        if power(&self.played) > AUDIBLE {
            let weight = (seconds / 2.0).min(1.0);
            self.before += weight * (power(mic) - self.before);
            self.after += weight * (power(clean) - self.after);
        }
    }

    /// How much quieter the microphone became while something was played, in dB; 0 while nothing was.
    pub fn reduction_db(&self) -> f64 {
        if self.canceller.is_none() || self.before < 1e-9 {
            return 0.0;
        }
        power_db(self.before) - power_db(self.after)
    }
}
