//! The whole engine on devices in memory: what people meet when devices come, go and refuse.

use std::f64::consts::TAU;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpal::{ErrorKind, SampleFormat};

use crate::devices::{DeviceFault, Direction, Selection, list};
use crate::ends::lock;
use crate::engine::{Engine, Options};
use crate::frame::{FRAME_SIZE, SAMPLE_RATE};
use crate::memory_host::{MemoryHost, Plan};

fn microphone(name: &'static str, rate: u32) -> Plan {
    Plan { name, input: true, rate, channels: 1, format: SampleFormat::F32, refuses: None }
}

fn speaker(name: &'static str, rate: u32) -> Plan {
    Plan { name, input: false, rate, channels: 2, format: SampleFormat::I16, refuses: None }
}

fn options(host: &MemoryHost) -> Options {
    let host = host.clone();
    Options {
        input: Selection::Default,
        output: Selection::Default,
        canceller: None,
        max_lag: 5 * FRAME_SIZE,
        hosts: Arc::new(move || Arc::new(vec![host.host()])),
    }
}

fn start(host: &MemoryHost) -> Engine {
    Engine::start(options(host)).unwrap()
}

/// Waits for something that the engine's threads do; generous, as machines may be busy.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn tone(t: f64) -> f32 {
    (0.5 * (TAU * 300.0 * t).sin()) as f32
}

fn received(engine: &Engine) -> u64 {
    lock(&engine.shared().queue).received()
}

/// Plays `seconds` of microphone, a frame at a time, so that nothing waits long enough to be dropped.
fn hear(host: &MemoryHost, engine: &Engine, seconds: f64) -> Vec<f32> {
    let mut heard = Vec::new();
    // The filter holds back less than this.
    let mut expected = received(engine);
    for _ in 0..(seconds / 0.08).round() as usize {
        host.run(0.08, tone);
        expected += FRAME_SIZE as u64;
        eventually("the sound is taken in", || received(engine) + 150 >= expected);
        while let Some(frame) = engine.read(Duration::ZERO) {
            heard.extend(frame.pcm);
        }
    }
    heard
}

#[test]
fn a_tone_arrives_at_24_khz_whatever_the_device() {
    for rate in [16_000, 44_100, 48_000] {
        let host = MemoryHost::new(&[microphone("mic", rate), speaker("speaker", 48_000)]);
        let engine = start(&host);
        let heard = hear(&host, &engine, 2.0);
        assert!(heard.len() >= 20 * FRAME_SIZE, "{} samples", heard.len());
        let crossings = heard[FRAME_SIZE..].windows(2).filter(|w| w[0] < 0.0 && w[1] >= 0.0).count() as f64;
        let hz = crossings * f64::from(SAMPLE_RATE) / (heard.len() - FRAME_SIZE) as f64;
        assert!((hz - 300.0).abs() < 3.0, "{rate}: {hz} Hz");
    }
}

#[test]
fn what_is_written_is_played_on_every_channel() {
    let host = MemoryHost::new(&[microphone("mic", 48_000), speaker("speaker", 44_100)]);
    let engine = start(&host);
    let mut played = Vec::new();
    for i in 0..25 {
        let frame: Vec<f32> = (0..FRAME_SIZE).map(|j| tone((i * FRAME_SIZE + j) as f64 / 24_000.0)).collect();
        engine.write(&frame).unwrap();
        played.extend(host.run(0.08, |_| 0.0));
    }
    let loud = played.iter().filter(|v| v.abs() > 0.1).count();
    assert!(loud > played.len() / 2, "{loud} of {} samples are loud", played.len());
    let jump = played.windows(2).map(|w| (w[1] - w[0]).abs()).fold(0.0f32, f32::max);
    assert!(jump < 0.05, "a jump of {jump}");
}

#[test]
fn devices_of_24_bits_neither_wrap_around_nor_lose_the_sign() {
    let format = SampleFormat::I24;
    let plans = [Plan { format, ..microphone("mic", 24_000) }, Plan { format, ..speaker("speaker", 24_000) }];
    let host = MemoryHost::new(&plans);
    let engine = start(&host);
    let heard = hear(&host, &engine, 0.8);
    let (low, high) = heard.iter().fold((0.0f32, 0.0f32), |(low, high), v| (low.min(*v), high.max(*v)));
    assert!((low + 0.5).abs() < 0.05 && (high - 0.5).abs() < 0.05, "from {low} to {high}");
    let mut played = Vec::new();
    for i in 0..12 {
        let at = |j| 3.0 * tone((i * FRAME_SIZE + j) as f64 / 24_000.0);
        engine.write(&(0..FRAME_SIZE).map(at).collect::<Vec<_>>()).unwrap();
        played.extend(host.run(0.08, |_| 0.0));
    }
    assert!(played.iter().any(|v| *v > 0.999), "nothing is as loud as it gets");
    let jump = played.windows(2).map(|w| (w[1] - w[0]).abs()).fold(0.0f32, f32::max);
    assert!(jump < 0.3, "a jump of {jump}");
}

#[test]
fn a_microphone_that_vanishes_is_replaced_and_the_conversation_goes_on() {
    for says_so in [true, false] {
        let host = MemoryHost::new(&[microphone("first", 48_000), microphone("second", 44_100)]);
        let engine = Engine::start(Options { output: Selection::Off, ..options(&host) }).unwrap();
        hear(&host, &engine, 0.4);
        host.unplug("first", says_so);
        eventually("the second microphone takes over", || engine.status()[0].name == "second");
        let kinds: Vec<_> = engine.events().iter().map(|e| e.kind).collect();
        assert_eq!(kinds, ["lost", "rebuilt"], "says_so: {says_so}");
        let heard = hear(&host, &engine, 0.8);
        assert!(heard.iter().any(|v| v.abs() > 0.4), "nothing is heard on the second microphone");
    }
}

#[test]
fn without_any_microphone_silence_is_heard_until_it_is_back() {
    let host = MemoryHost::new(&[microphone("mic", 48_000)]);
    let engine = Engine::start(Options { output: Selection::Off, ..options(&host) }).unwrap();
    hear(&host, &engine, 0.4);
    host.unplug("mic", true);
    for _ in 0..10 {
        let frame = engine.read(Duration::from_secs(20)).expect("frames go on");
        assert_eq!(frame.pcm.len(), FRAME_SIZE);
    }
    host.plug(microphone("mic", 44_100));
    eventually("the microphone is back", || engine.status()[0].rate == 44_100);
    assert!(hear(&host, &engine, 0.8).iter().any(|v| v.abs() > 0.4));
}

#[test]
fn a_new_default_device_is_followed() {
    let host = MemoryHost::new(&[microphone("mic", 48_000), speaker("loudspeaker", 48_000)]);
    let engine = start(&host);
    host.plug(speaker("headphones", 44_100));
    eventually("the headphones are used", || {
        host.run(0.02, |_| 0.1);
        engine.status()[1].name == "headphones"
    });
    assert!(engine.events().iter().any(|e| e.kind == "rebuilt" && e.direction == Direction::Output));
}

#[test]
fn a_reader_that_stalls_loses_the_oldest_frames_and_is_current_again_at_once() {
    let host = MemoryHost::new(&[microphone("mic", 24_000)]);
    let engine = Engine::start(Options { output: Selection::Off, ..options(&host) }).unwrap();
    hear(&host, &engine, 0.4);
    while engine.read(Duration::ZERO).is_some() {}
    let (before, made) = (engine.dropped(), lock(&engine.shared().queue).made());
    // Two seconds of sound while nobody reads, in steps that the engine's thread can follow.
    for _ in 0..200 {
        host.run(0.01, tone);
        std::thread::sleep(Duration::from_millis(3));
    }
    eventually("the queue is worked off", || engine.dropped() - before >= 20);
    let mut waiting = 0;
    while engine.read(Duration::from_millis(50)).is_some() {
        waiting += 1;
    }
    let dropped = engine.dropped() - before;
    assert!(waiting <= 5, "{waiting} frames waited");
    assert_eq!(dropped + waiting, lock(&engine.shared().queue).made() - made);
    assert!(dropped >= 20, "only {dropped} of 25 frames were dropped");
}

#[test]
fn three_seconds_of_zeros_give_one_hint() {
    let host = MemoryHost::new(&[microphone("mic", 48_000)]);
    let engine = Engine::start(Options { output: Selection::Off, ..options(&host) }).unwrap();
    host.run(2.9, |_| 0.0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(engine.events(), []);
    host.run(3.0, |_| 0.0);
    let mut events = Vec::new();
    eventually("the hint is given", || {
        events.extend(engine.events());
        !events.is_empty()
    });
    host.run(1.0, |_| 0.0);
    events.extend(engine.events());
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(events[0].kind == "hint" && events[0].message.contains("zeros"), "{events:?}");
}

fn refusal(plans: &[Plan], input: Selection) -> DeviceFault {
    let host = MemoryHost::new(plans);
    Engine::start(Options { input, ..options(&host) }).err().expect("it must be refused")
}

#[test]
fn every_cause_has_its_error() {
    let refusing = |kind| [Plan { refuses: Some(kind), ..microphone("mic", 48_000) }];
    assert_eq!(refusal(&[], Selection::Default), DeviceFault::None("microphone"));
    assert!(matches!(
        refusal(&refusing(ErrorKind::DeviceBusy), Selection::Default),
        DeviceFault::Busy { .. }
    ));
    let refused = refusal(&refusing(ErrorKind::PermissionDenied), Selection::Default);
    assert!(matches!(refused, DeviceFault::Refused { .. }));
    let unknown = refusal(&[microphone("Built-in", 48_000)], Selection::Named("usb".into()));
    assert_eq!(unknown.to_string(), "no microphone is called \"usb\"; there are: 0 Built-in");
    let number = refusal(&[microphone("Built-in", 48_000)], Selection::Number(7));
    assert!(number.to_string().contains("number 7"), "{number}");
}

#[test]
fn devices_are_chosen_by_number_and_by_a_part_of_their_name() {
    let host = MemoryHost::new(&[microphone("Built-in", 48_000), microphone("USB Microphone", 16_000)]);
    for selection in [Selection::Number(1), Selection::Named("usb".into())] {
        let options = Options { input: selection, output: Selection::Off, ..options(&host) };
        assert_eq!(Engine::start(options).unwrap().status()[0].name, "USB Microphone");
    }
    let devices = list(&[host.host()]);
    assert_eq!(devices.len(), 2);
    let port = devices[1].input.clone().unwrap();
    assert_eq!((port.rate, port.channels, port.rates, port.default), (16_000, 1, vec![16_000], false));
}

#[test]
fn a_device_chosen_by_number_or_part_stays_the_one_that_was_meant() {
    for selection in [Selection::Number(1), Selection::Named("usb".into())] {
        let host = MemoryHost::new(&[microphone("Built-in", 48_000), microphone("USB Microphone", 48_000)]);
        let options = Options { input: selection.clone(), output: Selection::Off, ..options(&host) };
        let engine = Engine::start(options).unwrap();
        let is_used = |name: &str| {
            host.run(0.02, |_| 0.1);
            engine.status()[0].name == name
        };
        // The numbers shift, and the new one is the first that fits the name; the choice is looked at every second.
        host.plug(microphone("USB Webcam", 48_000));
        let end = Instant::now() + Duration::from_millis(1_500);
        while Instant::now() < end {
            assert!(is_used("USB Microphone"), "{selection:?}: {:?}", engine.events());
            std::thread::sleep(Duration::from_millis(20));
        }
        host.unplug("USB Microphone", true);
        eventually("another takes over", || is_used("USB Webcam"));
        host.plug(microphone("USB Microphone", 48_000));
        eventually("it is taken back", || is_used("USB Microphone"));
        let events = engine.events();
        let kinds: Vec<_> = events.iter().map(|e| e.kind).collect();
        assert_eq!(kinds, ["lost", "rebuilt", "lost", "rebuilt"], "{selection:?}");
        assert!(events[0].message.starts_with("microphone USB Microphone was lost"), "{events:?}");
    }
}

#[test]
fn a_device_chosen_by_name_may_come_back_under_another() {
    let host = MemoryHost::new(&[microphone("Built-in", 48_000), microphone("USB port 1", 48_000)]);
    let selection = Selection::Named("usb".into());
    let engine =
        Engine::start(Options { input: selection, output: Selection::Off, ..options(&host) }).unwrap();
    let is_taken = |name| {
        eventually(name, || {
            host.run(0.02, |_| 0.1);
            engine.status()[0].name == name
        });
    };
    host.unplug("USB port 1", true);
    is_taken("Built-in");
    host.plug(microphone("USB port 2", 48_000));
    is_taken("USB port 2");
    host.plug(microphone("USB port 1", 48_000));
    is_taken("USB port 1");
}
