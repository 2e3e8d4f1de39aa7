//! Everything that is measured, by name, at one moment.

use crate::ends::lock;
use crate::engine::Engine;
use crate::frame::{FRAME_SIZE, SAMPLE_RATE};
use crate::meter::CallbackTimes;

/// A measured value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A count.
    Count(u64),
    /// A measure in the unit that its name ends with.
    Number(f64),
    /// A name.
    Text(String),
}

/// Names and values, in the order in which they are shown.
pub type Stats = Vec<(String, Value)>;

const FRAME_MS: f64 = FRAME_SIZE as f64 * 1_000.0 / SAMPLE_RATE as f64;

/// All numbers of a running engine.
pub fn collect(engine: &Engine) -> Stats {
    let mut stats = Stats::new();
    input(engine, &mut stats);
    output(engine, &mut stats);
    echo(engine, &mut stats);
    stats
}

fn input(engine: &Engine, stats: &mut Stats) {
    let shared = engine.shared();
    let [status, _] = engine.status();
    let mut add = |name: &str, value| stats.push((name.to_string(), value));
    add("input_device", Value::Text(status.name));
    add("input_host", Value::Text(status.host));
    add("input_rate", Value::Count(status.rate.into()));
    add("input_channels", Value::Count(status.channels.into()));
    add("input_rebuilds", Value::Count(status.rebuilds));
    add("input_xruns", Value::Count(status.xruns));
    let (waiting, dropped, made) = {
        let queue = lock(&shared.queue);
        (queue.waiting(), queue.dropped(), queue.made())
    };
    add("frames", Value::Count(made));
    add("dropped_frames", Value::Count(dropped));
    add("lag_ms", Value::Number(waiting as f64 * 1_000.0 / f64::from(SAMPLE_RATE)));

    let end = lock(&shared.input);
    let totals = end.totals();
    add("input_overruns", Value::Count(totals.overruns));
    add("input_overrun_ms", Value::Count(totals.overrun_ms));
    let Some(reader) = &end.reader else {
        add("input_level_db", Value::Number(-120.0));
        return;
    };
    let device_ms = reader.meters.latency_us.get() as f64 / 1_000.0;
    add("input_level_db", Value::Number(reader.meters.level.db()));
    add("input_ring_ms", Value::Number(reader.level() * 1e3));
    add("input_device_latency_ms", Value::Number(device_ms));
    let path = device_ms + (reader.filter_delay() + reader.level() + engine.read_wait()) * 1e3;
    let echo_ms = {
        let echo = lock(&shared.echo);
        echo.canceller.as_ref().map_or(0.0, |c| c.delay() as f64 * 1e3 / f64::from(SAMPLE_RATE))
    };
    add("capture_to_read_ms", Value::Number(path + echo_ms));
    add("capture_to_read_with_frame_ms", Value::Number(path + echo_ms + FRAME_MS));
    callback(stats, "input", &reader.meters.times);
}

fn output(engine: &Engine, stats: &mut Stats) {
    let shared = engine.shared();
    let [_, status] = engine.status();
    let mut add = |name: &str, value| stats.push((name.to_string(), value));
    add("output_device", Value::Text(status.name));
    add("output_host", Value::Text(status.host));
    add("output_rate", Value::Count(status.rate.into()));
    add("output_channels", Value::Count(status.channels.into()));
    add("output_rebuilds", Value::Count(status.rebuilds));
    add("output_xruns", Value::Count(status.xruns));
    let end = lock(&shared.output);
    let totals = end.totals();
    add("output_underruns", Value::Count(totals.underruns));
    add("output_skipped_ms", Value::Count(totals.skipped_ms));
    add("output_unheard_frames", Value::Count(end.unheard));
    let Some(writer) = &end.writer else {
        add("output_level_db", Value::Number(-120.0));
        return;
    };
    let device_ms = writer.meters.latency_us.get() as f64 / 1_000.0;
    add("output_level_db", Value::Number(writer.meters.level.db()));
    add("output_ring_ms", Value::Number(writer.level(shared.now_ns()) * 1e3));
    add("output_set_point_ms", Value::Number(writer.set_point() * 1e3));
    add("output_device_latency_ms", Value::Number(device_ms));
    add("write_to_speaker_ms", Value::Number((end.waited + writer.filter_delay()) * 1e3 + device_ms));
    add("output_drift_ppm", Value::Number(-writer.drift_ppm()));
    callback(stats, "output", &writer.meters.times);
}

fn echo(engine: &Engine, stats: &mut Stats) {
    let echo = lock(&engine.shared().echo);
    let mut add = |name: &str, value| stats.push((name.to_string(), value));
    add("heard_level_db", Value::Number(echo.level.db()));
    add("echo_reduction_db", Value::Number(echo.reduction_db()));
    if let Some(reference) = &echo.reference {
        add("echo_reference_missing", Value::Count(reference.missing()));
        add("echo_drift_ppm", Value::Number(reference.drift_ppm()));
    }
}

fn callback(stats: &mut Stats, side: &str, times: &CallbackTimes) {
    let calls = times.calls.get();
    let mut add = |name: &str, value| stats.push((format!("{side}_{name}"), value));
    add("callbacks", Value::Count(calls));
    add("callback_frames", Value::Count(times.frames.get()));
    add("callback_mean_us", Value::Number(times.total_ns.get() as f64 / calls.max(1) as f64 / 1e3));
    add("callback_worst_us", Value::Number(times.worst_ns.get() as f64 / 1e3));
    add("callback_worst_gap_ms", Value::Number(times.worst_gap_ns.get() as f64 / 1e6));
}
