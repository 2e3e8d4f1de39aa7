//! The machine's sound systems, asked over one connection for the whole process.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use cpal::traits::HostTrait;
use cpal::{Host, HostId};

use crate::devices::{self, Chosen, Direction, Selection};
use crate::ends::lock;

/// Sound systems, the preferred one first.
pub type Hosts = Arc<Vec<Host>>;

/// A sound system that takes longer to say which devices there are has hung.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The sound systems of the process that has this number.
static LATEST: Mutex<Option<(u32, Hosts)>> = Mutex::new(None);

/// The machine's sound systems: those that were given last, if they still answer, as PulseAudio's client leaves a thread
/// and a connection behind.
pub fn system_hosts() -> Hosts {
    let process = std::process::id();
    let latest = lock(&LATEST).clone();
    if let Some((of, hosts)) = latest {
        if of == process && answers(&hosts) {
            return hosts;
        }
        if of != process {
            // The threads that belong to it are not in this process: it can't be taken down.
            std::mem::forget(hosts);
        }
    }
    let mut hosts = Vec::new();
    for id in ids() {
        // A server offers ALSA's devices too, and asking ALSA makes its plugins write warnings to the terminal.
        if id.name() != "ALSA" || hosts.is_empty() {
            hosts.extend(connect(id));
        }
    }
    let hosts = Arc::new(hosts);
    *lock(&LATEST) = Some((process, hosts.clone()));
    hosts
}

/// A device of PulseAudio by a connection of its own.
///
/// Microphones need one: the server isn't told when a recording ends, but ends it with the connection. On a connection
/// it takes but one stream for a speaker at a time: a second needs one.
pub fn apart(chosen: &Chosen, direction: Direction) -> Option<Chosen> {
    let id = ids().into_iter().find(|id| id.name() == chosen.host && id.name() == "PulseAudio")?;
    devices::choose(&[connect(id)?], &Selection::Exact(chosen.key.clone()), direction).ok()
}

fn ids() -> Vec<HostId> {
    cpal::available_hosts().into_iter().filter(|id| id.name() != "Custom").collect()
}

fn connect(id: HostId) -> Option<Host> {
    cpal::host_from_id(id).ok()
}

fn answers(hosts: &Hosts) -> bool {
    // A server that has been started since is preferred to ALSA.
    if hosts.first().map(Host::id) != ids().first().copied() {
        return false;
    }
    let (done, wait) = mpsc::channel();
    let hosts = hosts.clone();
    std::thread::spawn(move || {
        let well = |host: &Host| host.id().name() == "ALSA" || host.devices().is_ok();
        // Nobody listens any more when it took too long.
        let _ = done.send(hosts.iter().all(well));
    });
    wait.recv_timeout(ANSWER_TIMEOUT).unwrap_or(false)
}
