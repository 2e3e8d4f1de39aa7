//! A sound system that lives in memory and moves only when a test says so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{
    Data, DeviceDescription, DeviceDescriptionBuilder, DeviceId, Error, ErrorKind, FrameCount, HostId,
    InputCallbackInfo, InputStreamTimestamp, OutputCallbackInfo, OutputStreamTimestamp, SampleFormat,
    StreamConfig, StreamInstant, SupportedBufferSize, SupportedStreamConfig, SupportedStreamConfigRange,
};

type OnInput = Box<dyn FnMut(&Data, &InputCallbackInfo) + Send>;
type OnOutput = Box<dyn FnMut(&mut Data, &OutputCallbackInfo) + Send>;
type OnError = Box<dyn FnMut(Error) + Send>;

/// A device as a test describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Plan {
    pub name: &'static str,
    pub input: bool,
    pub rate: u32,
    pub channels: u16,
    pub format: SampleFormat,
    /// What opening it answers.
    pub refuses: Option<ErrorKind>,
}

struct OpenStream {
    id: u64,
    plan: Plan,
    config: StreamConfig,
    input: Option<OnInput>,
    output: Option<OnOutput>,
    error: OnError,
}

#[derive(Default)]
struct World {
    plans: Vec<Plan>,
    streams: Vec<OpenStream>,
    clock_ns: u64,
}

/// The sound system; clones are the same one.
#[derive(Clone, Default)]
pub struct MemoryHost(Arc<Mutex<World>>);

static NEXT: AtomicU64 = AtomicU64::new(1);

impl MemoryHost {
    pub fn new(plans: &[Plan]) -> Self {
        let host = Self::default();
        host.0.lock().unwrap().plans = plans.to_vec();
        host
    }

    /// As a cpal host.
    pub fn host(&self) -> cpal::Host {
        cpal::Host::from(cpal::platform::CustomHost::from_host(self.clone()))
    }

    /// Takes a device away; its streams fall silent, with or without saying so.
    pub fn unplug(&self, name: &str, says_so: bool) {
        let mut world = self.0.lock().unwrap();
        world.plans.retain(|plan| plan.name != name);
        let gone: Vec<_> = world.streams.extract_if(.., |stream| stream.plan.name == name).collect();
        drop(world);
        for mut stream in gone {
            if says_so {
                (stream.error)(Error::new(ErrorKind::DeviceNotAvailable));
            }
        }
    }

    /// Puts a device in front of all others: it is the default now.
    pub fn plug(&self, plan: Plan) {
        self.0.lock().unwrap().plans.insert(0, plan);
    }

    /// Lets every open stream live through `seconds`, in blocks of 10 ms: microphones hear `heard(time)`, and what the
    /// speakers play is returned, first channel, at the speaker's rate.
    pub fn run(&self, seconds: f64, heard: impl Fn(f64) -> f32) -> Vec<f32> {
        let mut played = Vec::new();
        for _ in 0..(seconds * 100.0).round() as usize {
            let mut world = self.0.lock().unwrap();
            let start = world.clock_ns;
            world.clock_ns += 10_000_000;
            let instant = StreamInstant::from_nanos(world.clock_ns);
            for stream in &mut world.streams {
                let frames = stream.config.sample_rate as usize / 100;
                let channels = stream.config.channels as usize;
                let mut block = vec![0.0f32; frames * channels];
                if let Some(input) = &mut stream.input {
                    for (i, frame) in block.chunks_exact_mut(channels).enumerate() {
                        let t = start as f64 * 1e-9 + i as f64 / f64::from(stream.config.sample_rate);
                        frame.fill(heard(t));
                    }
                    let stamp = InputStreamTimestamp { callback: instant, capture: instant };
                    let info = InputCallbackInfo::new(stamp);
                    with_format(&mut block, stream.plan.format, |data| input(data, &info));
                }
                if let Some(output) = &mut stream.output {
                    let stamp = OutputStreamTimestamp { callback: instant, playback: instant };
                    let info = OutputCallbackInfo::new(stamp);
                    with_format(&mut block, stream.plan.format, |data| output(data, &info));
                    played.extend(block.iter().step_by(channels));
                }
            }
        }
        played
    }
}

/// Runs `work` on the block in the device's own format.
fn with_format(block: &mut [f32], format: SampleFormat, work: impl FnOnce(&mut Data)) {
    let count = block.len();
    match format {
        SampleFormat::I16 => {
            let mut raw: Vec<i16> = block.iter().map(|v| (v * 32_767.0) as i16).collect();
            // SAFETY: the pointer and the count are those of `raw`, which outlives the call.
            let mut data = unsafe { Data::from_parts(raw.as_mut_ptr().cast(), count, format) };
            work(&mut data);
            block.iter_mut().zip(raw).for_each(|(v, r)| *v = f32::from(r) / 32_768.0);
        }
        SampleFormat::I24 => {
            // As PulseAudio hands them over: the upper eight bits are zeros.
            let mut raw: Vec<i32> = block.iter().map(|v| (v * 8_388_607.0) as i32 & 0x00ff_ffff).collect();
            // SAFETY: the pointer and the count are those of `raw`, which outlives the call.
            let mut data = unsafe { Data::from_parts(raw.as_mut_ptr().cast(), count, format) };
            work(&mut data);
            block.iter_mut().zip(raw).for_each(|(v, r)| *v = (r << 8) as f32 / 2_147_483_648.0);
        }
        _ => {
            // SAFETY: the pointer and the count are those of `block`, which outlives the call.
            let mut data = unsafe { Data::from_parts(block.as_mut_ptr().cast(), count, SampleFormat::F32) };
            work(&mut data);
        }
    }
}

impl HostTrait for MemoryHost {
    type Device = MemoryDevice;
    type Devices = std::vec::IntoIter<MemoryDevice>;

    fn is_available() -> bool {
        true
    }

    fn devices(&self) -> Result<Self::Devices, Error> {
        let plans = self.0.lock().unwrap().plans.clone();
        let devices = plans.into_iter().map(|plan| MemoryDevice { host: self.clone(), plan });
        Ok(devices.collect::<Vec<_>>().into_iter())
    }

    fn default_input_device(&self) -> Option<Self::Device> {
        self.devices().ok()?.find(|device| device.plan.input)
    }

    fn default_output_device(&self) -> Option<Self::Device> {
        self.devices().ok()?.find(|device| !device.plan.input)
    }
}

#[derive(Clone)]
pub struct MemoryDevice {
    host: MemoryHost,
    plan: Plan,
}

impl std::fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.plan)
    }
}

impl std::fmt::Display for MemoryDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.plan.name)
    }
}

impl PartialEq for MemoryDevice {
    fn eq(&self, other: &Self) -> bool {
        self.plan == other.plan
    }
}

impl Eq for MemoryDevice {}

impl std::hash::Hash for MemoryDevice {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.plan.hash(state);
    }
}

impl MemoryDevice {
    fn ranges(&self, input: bool) -> Vec<SupportedStreamConfigRange> {
        let Plan { rate, channels, format, .. } = self.plan;
        let range =
            SupportedStreamConfigRange::new(channels, rate, rate, SupportedBufferSize::Unknown, format);
        if self.plan.input == input { vec![range] } else { Vec::new() }
    }

    fn usual(&self, input: bool) -> Result<SupportedStreamConfig, Error> {
        let range = self.ranges(input).pop().ok_or(Error::new(ErrorKind::UnsupportedOperation))?;
        Ok(range.with_max_sample_rate())
    }

    fn open(
        &self,
        config: StreamConfig,
        input: Option<OnInput>,
        output: Option<OnOutput>,
        error: OnError,
    ) -> Result<MemoryStream, Error> {
        if let Some(kind) = self.plan.refuses {
            return Err(Error::new(kind));
        }
        let mut world = self.host.0.lock().unwrap();
        if !world.plans.contains(&self.plan) {
            return Err(Error::new(ErrorKind::DeviceNotAvailable));
        }
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        world.streams.push(OpenStream { id, plan: self.plan.clone(), config, input, output, error });
        Ok(MemoryStream { host: self.host.clone(), id })
    }
}

impl DeviceTrait for MemoryDevice {
    type SupportedInputConfigs = std::vec::IntoIter<SupportedStreamConfigRange>;
    type SupportedOutputConfigs = std::vec::IntoIter<SupportedStreamConfigRange>;
    type Stream = MemoryStream;

    fn description(&self) -> Result<DeviceDescription, Error> {
        Ok(DeviceDescriptionBuilder::new(self.plan.name).build())
    }

    fn id(&self) -> Result<DeviceId, Error> {
        Ok(DeviceId::new(HostId::Custom, self.plan.name))
    }

    fn supported_input_configs(&self) -> Result<Self::SupportedInputConfigs, Error> {
        Ok(self.ranges(true).into_iter())
    }

    fn supported_output_configs(&self) -> Result<Self::SupportedOutputConfigs, Error> {
        Ok(self.ranges(false).into_iter())
    }

    fn default_input_config(&self) -> Result<SupportedStreamConfig, Error> {
        self.usual(true)
    }

    fn default_output_config(&self) -> Result<SupportedStreamConfig, Error> {
        self.usual(false)
    }

    fn build_input_stream_raw<D, E>(
        &self,
        config: StreamConfig,
        _format: SampleFormat,
        data_callback: D,
        error_callback: E,
        _timeout: Option<Duration>,
    ) -> Result<Self::Stream, Error>
    where
        D: FnMut(&Data, &InputCallbackInfo) + Send + 'static,
        E: FnMut(Error) + Send + 'static,
    {
        self.open(config, Some(Box::new(data_callback)), None, Box::new(error_callback))
    }

    fn build_output_stream_raw<D, E>(
        &self,
        config: StreamConfig,
        _format: SampleFormat,
        data_callback: D,
        error_callback: E,
        _timeout: Option<Duration>,
    ) -> Result<Self::Stream, Error>
    where
        D: FnMut(&mut Data, &OutputCallbackInfo) + Send + 'static,
        E: FnMut(Error) + Send + 'static,
    {
        self.open(config, None, Some(Box::new(data_callback)), Box::new(error_callback))
    }
}

pub struct MemoryStream {
    host: MemoryHost,
    id: u64,
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        self.host.0.lock().unwrap().streams.retain(|stream| stream.id != self.id);
    }
}

impl StreamTrait for MemoryStream {
    fn play(&self) -> Result<(), Error> {
        Ok(())
    }

    fn pause(&self) -> Result<(), Error> {
        Ok(())
    }

    fn buffer_size(&self) -> Result<FrameCount, Error> {
        Ok(480)
    }

    fn now(&self) -> StreamInstant {
        StreamInstant::from_nanos(self.host.0.lock().unwrap().clock_ns)
    }
}
