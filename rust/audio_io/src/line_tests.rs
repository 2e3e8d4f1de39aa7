//! What a line does when the device to use is there and can't be opened.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cpal::{ErrorKind, SampleFormat};

use crate::devices::{Chosen, DeviceFault, Direction, Selection};
use crate::line::{Line, Socket};
use crate::memory_host::{MemoryHost, Plan};
use crate::stream::{Running, open_capture};

const SECOND: u64 = 1_000_000_000;

/// Opens microphones whose callback ran last at this time.
struct Microphone(u64);

impl Socket for Microphone {
    fn open(&self, chosen: &Chosen, epoch: Instant) -> Result<Running, DeviceFault> {
        open_capture(chosen, epoch).map(|(running, _)| running)
    }

    fn close(&self) {}

    fn last_callback_ns(&self) -> u64 {
        self.0
    }
}

fn microphone(name: &'static str, refuses: Option<ErrorKind>) -> Plan {
    Plan { name, input: true, rate: 48_000, channels: 1, format: SampleFormat::F32, refuses }
}

/// A line on the one with "USB" in its name, open.
fn usb_line(host: &MemoryHost, epoch: Instant, last_callback_ns: u64) -> Line<Microphone> {
    let (host, usb) = (host.clone(), Selection::Named("usb".into()));
    let hosts = Arc::new(move || Arc::new(vec![host.host()]));
    let mut line = Line::new(Direction::Input, usb, Microphone(last_callback_ns), hosts, epoch);
    line.start(0).unwrap();
    line
}

/// What a line tells from one time to another, looking every 50 ms.
fn told(line: &mut Line<Microphone>, seconds: std::ops::Range<u64>) -> Vec<&'static str> {
    let times = (seconds.start * 20..seconds.end * 20).map(|i| i * SECOND / 20);
    times.flat_map(|now| line.tick(now)).map(|event| event.kind).collect()
}

#[test]
fn a_replacement_is_kept_until_the_device_asked_for_can_be_opened() {
    let host = MemoryHost::new(&[microphone("Built-in", None), microphone("USB", None)]);
    let mut line = usb_line(&host, Instant::now(), u64::MAX);
    host.unplug("USB", true);
    assert_eq!(told(&mut line, 0..10), ["lost", "rebuilt"]);
    host.plug(microphone("USB", Some(ErrorKind::DeviceBusy)));
    assert_eq!(told(&mut line, 10..100), [""; 0]);
    assert_eq!(line.status().name, "Built-in");
    host.unplug("USB", true);
    host.plug(microphone("USB", None));
    assert_eq!(told(&mut line, 100..140), ["lost", "rebuilt"]);
    assert_eq!((line.status().name.as_str(), line.status().rebuilds), ("USB", 2));
}

#[test]
fn a_device_that_fails_and_refuses_to_open_again_is_replaced() {
    let host = MemoryHost::new(&[microphone("USB", None)]);
    let mut line = usb_line(&host, Instant::now(), u64::MAX);
    host.unplug("USB", true);
    host.plug(microphone("USB", Some(ErrorKind::DeviceBusy)));
    host.plug(microphone("Built-in", None));
    assert_eq!(told(&mut line, 0..10), ["lost", "rebuilt"]);
    assert_eq!(line.status().name, "Built-in");
}

#[test]
fn a_device_that_took_long_to_open_is_given_time_to_begin() {
    let host = MemoryHost::new(&[microphone("USB", None)]);
    // Asked for at 0 s, open at 10 s.
    let epoch = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
    let mut line = usb_line(&host, epoch, 0);
    assert_eq!(told(&mut line, 10..13), [""; 0]);
    assert_eq!(told(&mut line, 15..20)[0], "lost");
}
