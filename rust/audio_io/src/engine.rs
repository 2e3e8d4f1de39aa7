//! Microphone, echo canceller and speaker as one: `read` gives frames, `write` takes them, two threads do the rest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::devices::{self, Chosen, DeviceFault, Direction, Selection};
use crate::echo::EchoCanceller;
use crate::ends::{EchoEnd, InputEnd, OutputEnd, lock};
use crate::frame::{Frame, FrameQueue, SAMPLE_RATE};
use crate::line::{Event, HostMaker, Line, LineStatus, Socket};
use crate::playback::Written;
use crate::stream::{self, Running};

/// How often what came in is worked on.
const PUMP_INTERVAL: Duration = Duration::from_millis(2);
/// How often the devices are looked after.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
/// How long closing may take: a sound system that hangs is left to itself after that.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Events kept for a reader that never asks.
const MAX_EVENTS: usize = 100;

/// What to open and how.
pub struct Options {
    /// The microphone.
    pub input: Selection,
    /// The speaker.
    pub output: Selection,
    /// Echo cancellation, if any.
    pub canceller: Option<Box<EchoCanceller>>,
    /// Samples at 24 kHz that may wait for the model before frames are dropped.
    pub max_lag: usize,
    /// Where devices come from.
    pub hosts: HostMaker,
}

/// State that the threads share.
pub struct Shared {
    pub(crate) epoch: Instant,
    pub(crate) input: Mutex<InputEnd>,
    pub(crate) output: Mutex<OutputEnd>,
    pub(crate) echo: Mutex<EchoEnd>,
    pub(crate) queue: Mutex<FrameQueue>,
    ready: Condvar,
    events: Mutex<VecDeque<Event>>,
    stop: AtomicBool,
    read_wait_ns: AtomicU64,
    status: Mutex<[LineStatus; 2]>,
}

impl Shared {
    pub(crate) fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn tell(&self, event: Event) {
        let mut events = lock(&self.events);
        if events.len() == MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }
}

struct InputSocket(Arc<Shared>);

impl Socket for InputSocket {
    fn open(&self, chosen: &Chosen, epoch: Instant) -> Result<Running, DeviceFault> {
        let (running, reader) = stream::open_capture(chosen, epoch)?;
        let mut input = lock(&self.0.input);
        input.close();
        input.reader = Some(reader);
        Ok(running)
    }

    fn close(&self) {
        lock(&self.0.input).close();
    }

    fn last_callback_ns(&self) -> u64 {
        lock(&self.0.input).reader.as_ref().map_or(0, |r| r.meters.times.last_ns.get())
    }
}

struct OutputSocket(Arc<Shared>);

impl Socket for OutputSocket {
    fn open(&self, chosen: &Chosen, epoch: Instant) -> Result<Running, DeviceFault> {
        let (running, writer, reference) = stream::open_playback(chosen, epoch)?;
        {
            let mut output = lock(&self.0.output);
            output.close();
            output.writer = Some(writer);
        }
        lock(&self.0.echo).reference = Some(reference);
        Ok(running)
    }

    fn close(&self) {
        lock(&self.0.output).close();
        lock(&self.0.echo).reference = None;
    }

    fn last_callback_ns(&self) -> u64 {
        lock(&self.0.output).writer.as_ref().map_or(0, |w| w.meters.times.last_ns.get())
    }
}

/// The two lines and what looks after them.
struct Watch {
    input: Line<InputSocket>,
    output: Line<OutputSocket>,
    shared: Arc<Shared>,
}

impl Watch {
    fn tick(&mut self) {
        let events = [self.input.tick(self.shared.now_ns()), self.output.tick(self.shared.now_ns())];
        for event in events.into_iter().flatten() {
            self.shared.tell(event);
        }
        *lock(&self.shared.status) = [self.input.status(), self.output.status()];
    }
}

/// A conversation's sound, until it is dropped.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The process that the threads live in: one that was forked from it has none of them.
    process: u32,
    has_input: bool,
    has_output: bool,
}

impl Engine {
    /// Opens the devices and starts listening.
    ///
    /// # Errors
    /// A `DeviceFault` when a device that was asked for can't be opened.
    pub fn start(options: Options) -> Result<Self, DeviceFault> {
        let (has_input, has_output) = (options.input != Selection::Off, options.output != Selection::Off);
        let (shared, mut watch) = assemble(options);
        watch.input.start(shared.now_ns())?;
        watch.output.start(shared.now_ns())?;
        watch.tick();
        let pumping = shared.clone();
        let watching = shared.clone();
        let threads = vec![
            spawn("moshi-audio", move || {
                let mut pump = Pump::default();
                while !pumping.stop.load(Ordering::Acquire) {
                    pump.step(&pumping, pumping.now_ns());
                    std::thread::park_timeout(PUMP_INTERVAL);
                }
            }),
            spawn("moshi-devices", move || {
                while !watching.stop.load(Ordering::Acquire) {
                    watch.tick();
                    std::thread::park_timeout(WATCH_INTERVAL);
                }
                watch.input.stop();
                watch.output.stop();
            }),
        ];
        let threads = threads.into_iter().collect::<Result<Vec<_>, _>>();
        let threads =
            threads.map_err(|e| DeviceFault::Failed { name: "the engine".into(), what: e.to_string() })?;
        let (threads, process) = (Mutex::new(threads), std::process::id());
        Ok(Self { shared, threads, process, has_input, has_output })
    }

    /// The oldest frame that waits, or none within `timeout`.
    pub fn read(&self, timeout: Duration) -> Option<Frame> {
        let queue = lock(&self.shared.queue);
        let mut found = None;
        let waited = self.shared.ready.wait_timeout_while(queue, timeout, |queue| {
            found = queue.pop();
            found.is_none() && !self.shared.stop.load(Ordering::Acquire)
        });
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        if let Some(frame) = &found {
            let wait = self.shared.now_ns().saturating_sub(frame.ready_ns);
            self.shared.read_wait_ns.store(wait, Ordering::Relaxed);
        }
        found
    }

    /// Hands `pcm` at 24 kHz to the speaker; none while there is no speaker.
    pub fn write(&self, pcm: &[f32]) -> Option<Written> {
        let mut output = lock(&self.shared.output);
        let now = self.shared.now_ns();
        let Some(writer) = &mut output.writer else {
            output.unheard += 1;
            return None;
        };
        // The filter can't fail on lengths that it was made for; a frame less is better than an end.
        let written = writer.write(pcm, now).ok()?;
        output.waited = written.waited;
        Some(written)
    }

    /// Waits until a frame can be written without building up a queue; false when `timeout` passes first.
    pub fn wait_writable(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        loop {
            let room = {
                let output = lock(&self.shared.output);
                output.writer.as_ref().is_some_and(|w| w.has_room(self.shared.now_ns()))
            };
            if room || self.shared.stop.load(Ordering::Acquire) {
                return room;
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Forgets what was heard so far: the conversation begins now.
    pub fn clear(&self) {
        lock(&self.shared.queue).clear();
    }

    /// Frames dropped because the reader was too late.
    pub fn dropped(&self) -> u64 {
        lock(&self.shared.queue).dropped()
    }

    /// What happened to the devices since the last call.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.shared.events).drain(..).collect()
    }

    /// Whether there is a microphone side.
    pub fn has_input(&self) -> bool {
        self.has_input
    }

    /// Whether there is a speaker side.
    pub fn has_output(&self) -> bool {
        self.has_output
    }

    /// Whether `close` was called.
    pub fn is_closed(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// State and numbers for `Stats`.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The two lines' state.
    pub fn status(&self) -> [LineStatus; 2] {
        lock(&self.shared.status).clone()
    }

    /// How long the last frame waited to be read, in seconds.
    pub fn read_wait(&self) -> f64 {
        self.shared.read_wait_ns.load(Ordering::Relaxed) as f64 * 1e-9
    }

    /// Ends the threads, which close the devices.
    ///
    /// One that a sound system keeps waiting ends by itself when it is answered: nobody waits for it.
    pub fn close(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ready.notify_all();
        let threads = std::mem::take(&mut *lock(&self.threads));
        if self.process != std::process::id() {
            // Even to let go of a thread that doesn't exist is an error.
            threads.into_iter().for_each(std::mem::forget);
            return;
        }
        threads.iter().for_each(|t| t.thread().unpark());
        let end = Instant::now() + CLOSE_TIMEOUT;
        while threads.iter().any(|t| !t.is_finished()) && Instant::now() < end {
            std::thread::sleep(PUMP_INTERVAL);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run)
}

fn assemble(options: Options) -> (Arc<Shared>, Watch) {
    let epoch = Instant::now();
    let shared = Arc::new(Shared {
        epoch,
        input: Mutex::new(InputEnd::new(options.input != Selection::Off)),
        output: Mutex::default(),
        echo: Mutex::new(EchoEnd::new(options.canceller)),
        queue: Mutex::new(FrameQueue::new(options.max_lag)),
        ready: Condvar::new(),
        events: Mutex::default(),
        stop: AtomicBool::new(false),
        read_wait_ns: AtomicU64::new(0),
        status: Mutex::default(),
    });
    let hosts = options.hosts;
    let input = Line::new(Direction::Input, options.input, InputSocket(shared.clone()), hosts.clone(), epoch);
    let output = Line::new(Direction::Output, options.output, OutputSocket(shared.clone()), hosts, epoch);
    let watch = Watch { input, output, shared: shared.clone() };
    (shared, watch)
}

/// Carries sound from the ring through the canceller into the queue.
#[derive(Default)]
struct Pump {
    mic: Vec<f32>,
    clean: Vec<f32>,
}

impl Pump {
    fn step(&mut self, shared: &Shared, now_ns: u64) {
        let (left_out, hint) = {
            let mut input = lock(&shared.input);
            (input.drain(now_ns, &mut self.mic), input.only_zeros())
        };
        lock(&shared.queue).drop_unmade(left_out);
        if hint {
            let message = format!(
                "the microphone has given nothing but zeros for 3 s: it is muted, or access to it is refused; {}",
                devices::permission_hint()
            );
            shared.tell(Event { kind: "hint", direction: Direction::Input, message });
        }
        if self.mic.is_empty() || lock(&shared.echo).process(&self.mic, &mut self.clean).is_err() {
            return;
        }
        lock(&shared.queue).push(&self.clean, now_ns);
        shared.ready.notify_one();
    }
}

/// Samples at 24 kHz in `ms` milliseconds.
pub fn samples_in(ms: f64) -> usize {
    (ms * f64::from(SAMPLE_RATE) / 1_000.0).round() as usize
}
