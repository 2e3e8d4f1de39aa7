//! One side of the conversation, microphone or speaker, kept alive: opened, watched, and rebuilt on what is there.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::devices::{self, Chosen, DeviceFault, Direction, Selection};
use crate::hosts::{self, Hosts};
use crate::stream::Running;

/// Callbacks that stay away this long mean that the device is gone, even if nobody says so.
const SILENT_DEVICE_NS: u64 = 1_500_000_000;
/// A new stream is given more time: a server may have filled the device's buffer two seconds ahead.
const START_NS: u64 = 4_000_000_000;
/// How often the choice of device is looked at again.
const LOOK_NS: u64 = 1_000_000_000;
/// Most that this doubles up to while the device to use is there but can't be opened.
const LAST_LOOK_NS: u64 = 30_000_000_000;
/// First wait before trying again; doubles up to the last.
const FIRST_WAIT_NS: u64 = 100_000_000;
const LAST_WAIT_NS: u64 = 5_000_000_000;

/// Gives the sound systems there are now: a connection to a server that was restarted is of no use.
pub type HostMaker = Arc<dyn Fn() -> Hosts + Send + Sync>;

/// Something to tell the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `"lost"`, `"rebuilt"`, `"moved"` or `"hint"`.
    pub kind: &'static str,
    /// Which side.
    pub direction: Direction,
    /// A sentence.
    pub message: String,
}

/// What a line needs to open its kind of stream; `install` hands over the halves that the engine uses.
pub trait Socket {
    /// Starts a stream on `chosen` and hands its other half to the engine.
    ///
    /// # Errors
    /// A `DeviceFault` when the device refuses.
    fn open(&self, chosen: &Chosen, epoch: Instant) -> Result<Running, DeviceFault>;
    /// Takes the other half away from the engine.
    fn close(&self);
    /// When the callback ran last, in nanoseconds of the engine's clock; 0 if never.
    fn last_callback_ns(&self) -> u64;
}

struct Open {
    running: Running,
    name: String,
    key: String,
    host: String,
    since_ns: u64,
    moves: u64,
}

/// One side and what became of it.
pub struct Line<S> {
    direction: Direction,
    selection: Selection,
    /// The key of the device that a number or a name meant at first: in a list that changes it may soon mean another.
    meant: Option<String>,
    socket: S,
    epoch: Instant,
    hosts: Hosts,
    make_hosts: HostMaker,
    open: Option<Open>,
    attempts: u32,
    next_try_ns: u64,
    next_look_ns: u64,
    refusals: u32,
    rebuilds: u64,
    xruns: u64,
}

/// What is shown about a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LineStatus {
    /// The device in use; empty while there is none.
    pub name: String,
    /// Its sound system.
    pub host: String,
    /// Its rate.
    pub rate: u32,
    /// Its channels.
    pub channels: u16,
    /// Times that the stream was built again.
    pub rebuilds: u64,
    /// Losses that the sound system noticed.
    pub xruns: u64,
}

impl<S: Socket> Line<S> {
    /// A line that is not open yet.
    pub fn new(
        direction: Direction,
        selection: Selection,
        socket: S,
        make_hosts: HostMaker,
        epoch: Instant,
    ) -> Self {
        Self {
            direction,
            selection,
            meant: None,
            socket,
            epoch,
            hosts: Hosts::default(),
            make_hosts,
            open: None,
            attempts: 0,
            next_try_ns: 0,
            next_look_ns: 0,
            refusals: 0,
            rebuilds: 0,
            xruns: 0,
        }
    }

    /// Opens the device that was asked for, for the first time.
    ///
    /// # Errors
    /// A `DeviceFault` when there is none or it refuses.
    pub fn start(&mut self, now_ns: u64) -> Result<(), DeviceFault> {
        if self.selection == Selection::Off {
            return Ok(());
        }
        self.hosts = (self.make_hosts)();
        let chosen = self.wanted()?;
        self.install(&chosen)?;
        self.next_look_ns = now_ns + LOOK_NS;
        self.meant = (self.selection != Selection::Default).then_some(chosen.key);
        Ok(())
    }

    /// The device to use now: the one that was meant at first, or while it is away, another that the name fits.
    fn wanted(&self) -> Result<Chosen, DeviceFault> {
        let choose = |selection: &Selection| devices::choose(&self.hosts, selection, self.direction);
        let Some(key) = &self.meant else {
            return choose(&self.selection);
        };
        let meant = choose(&Selection::Exact(key.clone()));
        // A device that is in use isn't away, even where it is not listed while it is.
        let in_use = self.open.as_ref().is_some_and(|open| open.key == *key);
        match self.selection {
            Selection::Named(_) if !in_use => meant.or_else(|_| choose(&self.selection)),
            _ => meant,
        }
    }

    /// Opens a device; the one in use before, if any, is closed when that has worked.
    fn install(&mut self, chosen: &Chosen) -> Result<(), DeviceFault> {
        let open = |chosen: &Chosen| self.socket.open(chosen, self.epoch);
        let apart = || hosts::apart(chosen, self.direction);
        let running = match self.direction {
            Direction::Input => open(apart().as_ref().unwrap_or(chosen)),
            Direction::Output => open(chosen).or_else(|fault| open(&apart().ok_or(fault)?)),
        }?;
        let before = self.open.replace(Open {
            running,
            name: chosen.name.clone(),
            key: chosen.key.clone(),
            host: chosen.host.clone(),
            // Opening may have taken a while.
            since_ns: self.epoch.elapsed().as_nanos() as u64,
            moves: 0,
        });
        self.xruns += before.map_or(0, |open| open.running.state.xruns.get());
        Ok(())
    }

    /// Looks after the line; gives what the user should know.
    pub fn tick(&mut self, now_ns: u64) -> Vec<Event> {
        if self.selection == Selection::Off {
            return Vec::new();
        }
        if self.open.is_none() {
            return if now_ns >= self.next_try_ns { Vec::from_iter(self.retry(now_ns)) } else { Vec::new() };
        }
        if let Some(reason) = self.fault(now_ns) {
            return vec![self.lose(&reason, now_ns)];
        }
        let mut events = Vec::from_iter(self.moved());
        events.extend(self.look(now_ns).into_iter().flatten());
        events
    }

    /// Why the open stream can't go on, if so.
    fn fault(&self, now_ns: u64) -> Option<String> {
        let open = self.open.as_ref()?;
        let state = &open.running.state;
        if state.broken.load(Ordering::Acquire) {
            let reason = state.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return Some(reason.unwrap_or_else(|| "the sound system ended the stream".into()));
        }
        let last = self.socket.last_callback_ns();
        let new = now_ns.saturating_sub(open.since_ns) < START_NS;
        (!new && now_ns.saturating_sub(last) > SILENT_DEVICE_NS).then(|| "it has stopped responding".into())
    }

    /// Changes to the device that is to be used now, if that is another and can be opened.
    fn look(&mut self, now_ns: u64) -> Option<[Event; 2]> {
        if now_ns < self.next_look_ns {
            return None;
        }
        self.next_look_ns = now_ns + LOOK_NS;
        // A device asked for may be away: then its replacement is kept until it comes back.
        let wanted = self.wanted().ok()?;
        if self.open.as_ref()?.key == wanted.key {
            return None;
        }
        let lost = self.lost(&format!("{} is to be used now", wanted.name));
        let works = self.install(&wanted).is_ok();
        self.look_later(works, now_ns);
        works.then(|| [lost, self.rebuilt()])
    }

    /// Sets when to look again, by whether the device to use could be opened.
    fn look_later(&mut self, works: bool, now_ns: u64) {
        self.refusals = if works { 0 } else { self.refusals + 1 };
        self.next_look_ns = now_ns + (LOOK_NS << self.refusals.min(6)).min(LAST_LOOK_NS);
    }

    fn rebuilt(&mut self) -> Event {
        self.rebuilds += 1;
        let name = self.open.as_ref().map_or("", |open| &open.name);
        let message = format!("{} is now {name}", self.direction.noun());
        Event { kind: "rebuilt", direction: self.direction, message }
    }

    fn moved(&mut self) -> Option<Event> {
        let open = self.open.as_mut()?;
        let moves = open.running.state.moves.get();
        if moves == open.moves {
            return None;
        }
        open.moves = moves;
        let noun = self.direction.noun();
        let message = format!("the system moved the {noun} to another device");
        Some(Event { kind: "moved", direction: self.direction, message })
    }

    fn lost(&self, reason: &str) -> Event {
        let name = self.open.as_ref().map_or("", |open| &open.name);
        let message = format!("{} {name} was lost ({reason}); looking for one", self.direction.noun());
        Event { kind: "lost", direction: self.direction, message }
    }

    fn lose(&mut self, reason: &str, now_ns: u64) -> Event {
        let lost = self.lost(reason);
        self.stop();
        self.attempts = 0;
        self.next_try_ns = now_ns;
        lost
    }

    /// Opens the device to use, or where that is away or refuses, the system's; false when it refused.
    fn reopen(&mut self) -> Result<bool, DeviceFault> {
        let usual = devices::choose(&self.hosts, &Selection::Default, self.direction);
        let Ok(wanted) = self.wanted() else {
            return self.install(&usual?).map(|()| true);
        };
        match (self.install(&wanted), usual) {
            (Err(_), Ok(usual)) if usual.key != wanted.key => self.install(&usual).map(|()| false),
            (result, _) => result.map(|()| true),
        }
    }

    fn retry(&mut self, now_ns: u64) -> Option<Event> {
        self.hosts = (self.make_hosts)();
        match self.reopen() {
            Ok(works) => {
                self.attempts = 0;
                self.look_later(works, now_ns);
                Some(self.rebuilt())
            }
            Err(fault) => {
                let wait = (FIRST_WAIT_NS << self.attempts.min(6)).min(LAST_WAIT_NS);
                self.attempts += 1;
                self.next_try_ns = now_ns + wait;
                // Said once, not at every attempt.
                (self.attempts == 5).then(|| Event {
                    kind: "lost",
                    direction: self.direction,
                    message: fault.to_string(),
                })
            }
        }
    }

    /// Closes the stream.
    pub fn stop(&mut self) {
        if let Some(open) = self.open.take() {
            self.xruns += open.running.state.xruns.get();
            self.socket.close();
        }
    }

    /// What to show about it.
    pub fn status(&self) -> LineStatus {
        let mut status = LineStatus { rebuilds: self.rebuilds, xruns: self.xruns, ..LineStatus::default() };
        if let Some(open) = &self.open {
            status.name.clone_from(&open.name);
            status.host.clone_from(&open.host);
            status.rate = open.running.rate;
            status.channels = open.running.channels;
            status.xruns += open.running.state.xruns.get();
        }
        status
    }
}
