//! A running stream of a device: the sound system's callbacks tied to the two halves of each path.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cpal::traits::{DeviceTrait, StreamTrait};
use cpal::{
    BufferSize, Data, InputCallbackInfo, OutputCallbackInfo, SampleFormat, Stream, StreamConfig,
    SupportedBufferSize, SupportedStreamConfig,
};

use crate::capture::{CaptureCallback, CaptureReader, capture_pair};
use crate::devices::{Chosen, DeviceFault};
use crate::meter::Count;
use crate::playback::{PlaybackWriter, playback_pair};
use crate::playback_callback::PlaybackCallback;
use crate::reference::PlayedReference;

/// Length of the microphone's blocks that is asked for; devices may take another.
const CAPTURE_BLOCK: f64 = 0.010;
/// The same for PulseAudio, whose server adds a block or two of delay, and loses what it can't hand on for as long.
const PULSE_CAPTURE_BLOCK: f64 = 0.0075;
/// The same for the speaker. Linux's sound servers call back from an ordinary thread, which a busy machine may keep
/// waiting; they hold two blocks.
const PLAYBACK_BLOCK: f64 = if cfg!(target_os = "linux") { 0.020 } else { 0.010 };
/// How long a sound system may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// What the sound system says about a running stream.
#[derive(Debug, Default)]
pub struct StreamState {
    /// The stream has ended and must be built anew.
    pub broken: AtomicBool,
    /// Why.
    pub reason: Mutex<Option<String>>,
    /// Losses that the sound system itself noticed.
    pub xruns: Count,
    /// Times that the system moved the stream to another device by itself.
    pub moves: Count,
}

impl StreamState {
    fn report(&self, error: &cpal::Error) {
        match error.kind() {
            cpal::ErrorKind::Xrun => self.xruns.add(1),
            cpal::ErrorKind::DeviceChanged => self.moves.add(1),
            cpal::ErrorKind::RealtimeDenied => {}
            _ => {
                *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                self.broken.store(true, Ordering::Release);
            }
        }
    }
}

/// A stream that plays or records until it is dropped.
pub struct Running {
    stream: Option<Stream>,
    /// What the sound system says about it.
    pub state: Arc<StreamState>,
    /// The device's rate.
    pub rate: u32,
    /// The device's channels.
    pub channels: u16,
}

impl Drop for Running {
    /// Some sound systems never return from closing a stream whose device is gone: that is waited for half a second.
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            let (done, wait) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                drop(stream);
                // Nobody listens after half a second.
                let _ = done.send(());
            });
            let _ = wait.recv_timeout(Duration::from_millis(500));
        }
    }
}

/// Starts recording from a device.
///
/// # Errors
/// A `DeviceFault` when the device refuses.
pub fn open_capture(chosen: &Chosen, epoch: Instant) -> Result<(Running, CaptureReader), DeviceFault> {
    let fault = |error: cpal::Error| DeviceFault::from_system(&error, &chosen.name);
    let usual = chosen.device.default_input_config().map_err(fault)?;
    let supported = || chosen.device.supported_input_configs().map(|c| c.collect::<Vec<_>>());
    let usual = readable(usual, supported).ok_or_else(|| DeviceFault::Unsupported {
        name: chosen.name.clone(),
        what: "its sample format".into(),
    })?;
    let state = Arc::new(StreamState::default());
    let mut last = None;
    let block = if chosen.host == "PulseAudio" { PULSE_CAPTURE_BLOCK } else { CAPTURE_BLOCK };
    for config in configs(&usual, block) {
        let (mut callback, reader) = capture_pair(config.sample_rate, config.channels.into())
            .map_err(|e| DeviceFault::Unsupported { name: chosen.name.clone(), what: e.to_string() })?;
        let meters = reader.meters.clone();
        let on_data = move |data: &Data, info: &InputCallbackInfo| {
            let now = epoch.elapsed();
            let stamp = info.timestamp();
            let latency = stamp.callback.saturating_duration_since(stamp.capture).as_micros() as u64;
            dispatch_capture(&mut callback, data, now.as_nanos() as u64, latency);
            meters.times.end((epoch.elapsed() - now).as_nanos() as u64);
        };
        let reporter = state.clone();
        let on_error = move |error: cpal::Error| reporter.report(&error);
        match chosen.device.build_input_stream_raw(
            config,
            usual.sample_format(),
            on_data,
            on_error,
            Some(OPEN_TIMEOUT),
        ) {
            Ok(stream) => {
                stream.play().map_err(fault)?;
                let running = Running {
                    stream: Some(stream),
                    state,
                    rate: config.sample_rate,
                    channels: config.channels,
                };
                return Ok((running, reader));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(DeviceFault::None("microphone"), fault))
}

/// Starts playing on a device.
///
/// # Errors
/// A `DeviceFault` when the device refuses.
pub fn open_playback(
    chosen: &Chosen,
    epoch: Instant,
) -> Result<(Running, PlaybackWriter, PlayedReference), DeviceFault> {
    let fault = |error: cpal::Error| DeviceFault::from_system(&error, &chosen.name);
    let usual = chosen.device.default_output_config().map_err(fault)?;
    let supported = || chosen.device.supported_output_configs().map(|c| c.collect::<Vec<_>>());
    let usual = readable(usual, supported).ok_or_else(|| DeviceFault::Unsupported {
        name: chosen.name.clone(),
        what: "its sample format".into(),
    })?;
    let unsupported = |e: crate::resample::ResampleError| DeviceFault::Unsupported {
        name: chosen.name.clone(),
        what: e.to_string(),
    };
    let state = Arc::new(StreamState::default());
    let mut last = None;
    for config in configs(&usual, PLAYBACK_BLOCK) {
        let (writer, mut callback, played) =
            playback_pair(config.sample_rate, config.channels.into()).map_err(unsupported)?;
        let reference = PlayedReference::new(played, config.sample_rate).map_err(unsupported)?;
        let meters = writer.meters.clone();
        let on_data = move |data: &mut Data, info: &OutputCallbackInfo| {
            let now = epoch.elapsed();
            let stamp = info.timestamp();
            let latency = stamp.playback.saturating_duration_since(stamp.callback).as_micros() as u64;
            dispatch_playback(&mut callback, data, now.as_nanos() as u64, latency);
            meters.times.end((epoch.elapsed() - now).as_nanos() as u64);
        };
        let reporter = state.clone();
        let on_error = move |error: cpal::Error| reporter.report(&error);
        match chosen.device.build_output_stream_raw(
            config,
            usual.sample_format(),
            on_data,
            on_error,
            Some(OPEN_TIMEOUT),
        ) {
            Ok(stream) => {
                stream.play().map_err(fault)?;
                let running = Running {
                    stream: Some(stream),
                    state,
                    rate: config.sample_rate,
                    channels: config.channels,
                };
                return Ok((running, writer, reference));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(DeviceFault::None("speaker"), fault))
}

/// Short blocks first, then whatever the device likes.
fn configs(usual: &SupportedStreamConfig, block: f64) -> [StreamConfig; 2] {
    let wanted = (f64::from(usual.sample_rate()) * block) as u32;
    let block = match usual.buffer_size() {
        SupportedBufferSize::Range { min, max } if min <= max => wanted.clamp(*min, *max),
        _ => wanted,
    };
    let default = StreamConfig { buffer_size: BufferSize::Default, ..usual.config() };
    [StreamConfig { buffer_size: BufferSize::Fixed(block), ..default }, default]
}

/// The usual configuration if its samples are plain numbers, else one whose samples are.
fn readable<E>(
    usual: SupportedStreamConfig,
    supported: impl Fn() -> Result<Vec<cpal::SupportedStreamConfigRange>, E>,
) -> Option<SupportedStreamConfig> {
    if plain(usual.sample_format()) {
        return Some(usual);
    }
    supported().ok()?.into_iter().find(|range| plain(range.sample_format())).map(|range| {
        let rate = usual.sample_rate().clamp(range.min_sample_rate(), range.max_sample_rate());
        range.with_sample_rate(rate)
    })
}

/// Runs `$body` with the samples as a slice of their own type.
macro_rules! with_samples {
    ($format:expr, $data:expr, $slice:ident, $call:expr) => {
        match $format {
            SampleFormat::F32 => {
                if let Some(s) = $data.$slice::<f32>() {
                    $call(s)
                }
            }
            SampleFormat::I16 => {
                if let Some(s) = $data.$slice::<i16>() {
                    $call(s)
                }
            }
            SampleFormat::I24 => {
                if let Some(s) = $data.$slice::<cpal::I24>() {
                    $call(s)
                }
            }
            SampleFormat::I32 => {
                if let Some(s) = $data.$slice::<i32>() {
                    $call(s)
                }
            }
            SampleFormat::U8 => {
                if let Some(s) = $data.$slice::<u8>() {
                    $call(s)
                }
            }
            SampleFormat::I8 => {
                if let Some(s) = $data.$slice::<i8>() {
                    $call(s)
                }
            }
            SampleFormat::U16 => {
                if let Some(s) = $data.$slice::<u16>() {
                    $call(s)
                }
            }
            SampleFormat::U32 => {
                if let Some(s) = $data.$slice::<u32>() {
                    $call(s)
                }
            }
            SampleFormat::I64 => {
                if let Some(s) = $data.$slice::<i64>() {
                    $call(s)
                }
            }
            SampleFormat::U64 => {
                if let Some(s) = $data.$slice::<u64>() {
                    $call(s)
                }
            }
            SampleFormat::F64 => {
                if let Some(s) = $data.$slice::<f64>() {
                    $call(s)
                }
            }
            _ => {}
        }
    };
}

fn plain(format: SampleFormat) -> bool {
    use SampleFormat::{F32, F64, I8, I16, I24, I32, I64, U8, U16, U32, U64};
    matches!(format, F32 | F64 | I8 | I16 | I24 | I32 | I64 | U8 | U16 | U32 | U64)
}

fn dispatch_capture(callback: &mut CaptureCallback, data: &Data, now_ns: u64, latency_us: u64) {
    if let Some(samples) = data.as_slice::<cpal::I24>() {
        callback.take_24(samples, now_ns, latency_us);
        return;
    }
    with_samples!(data.sample_format(), data, as_slice, |s| callback.take(s, now_ns, latency_us));
}

fn dispatch_playback(callback: &mut PlaybackCallback, data: &mut Data, now_ns: u64, latency_us: u64) {
    with_samples!(data.sample_format(), data, as_slice_mut, |s| callback.fill(s, now_ns, latency_us));
}
