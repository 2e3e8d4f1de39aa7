//! Microphone and speaker on clocks of their own, simulated: hours of signal in seconds.

use std::f64::consts::TAU;

use crate::frame::{FRAME_SIZE, SAMPLE_RATE};
use crate::playback::{PlaybackWriter, playback_pair};
use crate::playback_callback::PlaybackCallback;
use crate::reference::PlayedReference;

const FRAME_NS: f64 = FRAME_SIZE as f64 / SAMPLE_RATE as f64 * 1e9;

/// A writer on the microphone's clock and a device whose clock is `ppm` faster.
struct Simulation {
    writer: PlaybackWriter,
    device: PlaybackCallback,
    reference: PlayedReference,
    frames: u64,
    blocks: u64,
    block_ns: f64,
    noise: u32,
    phase: f64,
    out: Vec<f32>,
    level: (f64, f64),
    heard: Vec<f32>,
    played24: Vec<f32>,
    /// Whether the echo canceller's reference is drawn too; it costs as much as playback does.
    with_reference: bool,
}

impl Simulation {
    fn new(rate: u32, block: usize, ppm: f64) -> Self {
        let (writer, device, played) = playback_pair(rate, 1).unwrap();
        Self {
            writer,
            device,
            reference: PlayedReference::new(played, rate).unwrap(),
            frames: 0,
            blocks: 0,
            block_ns: block as f64 / (f64::from(rate) * (1.0 + ppm * 1e-6)) * 1e9,
            noise: 1,
            phase: 0.0,
            out: vec![0.0; block],
            level: (f64::MAX, f64::MIN),
            heard: Vec::new(),
            played24: Vec::new(),
            with_reference: true,
        }
    }

    fn random(&mut self) -> f64 {
        self.noise = self.noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(self.noise >> 8) / f64::from(1 << 24)
    }

    /// Runs for `seconds`; the model takes 30 ms plus up to `jitter` for a frame of a tone of `hz`.
    fn run(&mut self, seconds: f64, jitter: f64, hz: f64, keep: bool) {
        self.heard.clear();
        self.played24.clear();
        let end = self.frames + (seconds * 12.5) as u64;
        let mut samples = Vec::new();
        while self.frames < end {
            let late = (0.030 + jitter * self.random()) * 1e9;
            let now = (self.frames + 1) as f64 * FRAME_NS + late;
            while (self.blocks as f64) * self.block_ns <= now {
                let at = (self.blocks as f64 * self.block_ns) as u64;
                self.device.fill(&mut self.out, at, 0);
                if keep {
                    self.heard.extend_from_slice(&self.out);
                }
                self.blocks += 1;
            }
            let step = TAU * hz / f64::from(SAMPLE_RATE);
            let frame: Vec<f32> =
                (0..FRAME_SIZE).map(|i| (0.5 * (self.phase + step * i as f64).sin()) as f32).collect();
            self.phase = (self.phase + step * FRAME_SIZE as f64) % TAU;
            let written = self.writer.write(&frame, now as u64).unwrap();
            assert_eq!(written.skipped, 0.0, "skipped at frame {}", self.frames);
            if self.frames > 20 {
                self.level = (self.level.0.min(written.waited), self.level.1.max(written.waited));
            }
            if self.with_reference {
                self.reference.take(FRAME_SIZE, &mut samples).unwrap();
            }
            if keep {
                self.played24.extend_from_slice(&samples);
            }
            self.frames += 1;
        }
    }
}

/// Signal over everything else, in dB: a sinusoid of free frequency is fitted and taken away.
fn tone_over_rest(x: &[f32], rate: f64, hz: f64) -> f64 {
    let residue = |hz: f64| -> (f64, f64) {
        let (mut cc, mut ss, mut cs, mut xc, mut xs, mut xx) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
        for (i, &v) in x.iter().enumerate() {
            let (s, c) = (TAU * hz * i as f64 / rate).sin_cos();
            let v = f64::from(v);
            cc += c * c;
            ss += s * s;
            cs += c * s;
            xc += v * c;
            xs += v * s;
            xx += v * v;
        }
        let det = cc * ss - cs * cs;
        let (a, b) = ((xc * ss - xs * cs) / det, (xs * cc - xc * cs) / det);
        let signal = a * xc + b * xs;
        (signal, (xx - signal).max(1e-15))
    };
    let (mut low, mut high) = (hz * 0.997, hz * 1.003);
    for _ in 0..60 {
        let (a, b) = (low + (high - low) * 0.382, low + (high - low) * 0.618);
        if residue(a).1 < residue(b).1 { high = b } else { low = a }
    }
    let (signal, rest) = residue((low + high) / 2.0);
    10.0 * (signal / rest).log10()
}

/// Worst tone-to-rest ratio over windows of 0.1 s.
fn worst_window(x: &[f32], rate: u32, hz: f64) -> f64 {
    let rate = f64::from(rate);
    x.chunks_exact((rate * 0.1) as usize).map(|w| tone_over_rest(w, rate, hz)).fold(f64::MAX, f64::min)
}

fn an_hour_at(ppm: f64, rate: u32, block: usize, with_reference: bool) {
    let mut sim = Simulation { with_reference, ..Simulation::new(rate, block, ppm) };
    sim.run(4.0, 0.0, 1000.0, false);
    let mut worst = f64::MAX;
    for minute in 0..60 {
        sim.run(58.0, 0.004, 1000.0, false);
        sim.run(2.0, 0.004, 1000.0, true);
        let snr = worst_window(&sim.heard, rate, 1000.0);
        assert!(snr >= 60.0, "minute {minute} at {ppm} ppm: the tone is only {snr:.1} dB above the rest");
        if with_reference {
            let echo = worst_window(&sim.played24, SAMPLE_RATE, 1000.0);
            assert!(echo >= 60.0, "minute {minute} at {ppm} ppm: reference {echo:.1} dB above the rest");
        }
        worst = worst.min(snr);
    }
    let meters = &sim.writer.meters;
    println!(
        "{ppm} ppm at {rate} Hz: tone {worst:.1} dB above the rest, level {:?} s, set point {:.4} s, drift {:.1}/{:.1} ppm",
        sim.level,
        sim.writer.set_point(),
        sim.writer.drift_ppm(),
        sim.reference.drift_ppm(),
    );
    assert_eq!(meters.underruns.get(), 0, "underruns");
    assert_eq!(sim.writer.lost(), 0, "overruns");
    let within = 0.080;
    assert!(
        (sim.level.0 - sim.writer.set_point()).abs() < within
            && sim.level.1 - sim.writer.set_point() < within,
        "the level went {:?} s away from its set point",
        sim.level
    );
    assert!((sim.writer.drift_ppm() + ppm).abs() < 50.0, "learned {} ppm", sim.writer.drift_ppm());
}

#[test]
fn an_hour_with_a_slow_speaker_clock() {
    an_hour_at(-500.0, 24_000, 240, false);
}

#[test]
fn an_hour_with_a_fast_speaker_clock() {
    an_hour_at(500.0, 24_000, 240, true);
}

#[test]
fn two_minutes_at_rates_and_blocks_of_other_devices() {
    for (rate, block) in [(44_100, 512), (48_000, 480), (16_000, 160), (96_000, 1024)] {
        let mut sim = Simulation { with_reference: false, ..Simulation::new(rate, block, 100.0) };
        sim.run(120.0, 0.010, 440.0, false);
        sim.run(2.0, 0.010, 440.0, true);
        let snr = worst_window(&sim.heard, rate, 440.0);
        println!("{rate}: {snr:.1} dB, level {:?}", sim.level);
        assert!(snr >= 60.0, "{rate} Hz in blocks of {block}: {snr:.1} dB");
        assert_eq!(sim.writer.meters.underruns.get(), 0);
    }
}

#[test]
fn an_underrun_and_a_skip_make_no_click() {
    let hz = 200.0;
    let mut sim = Simulation::new(48_000, 480, 0.0);
    sim.run(4.0, 0.0, hz, false);
    // The steepest step of the tone itself.
    let steepest = 0.5 * TAU * hz / 48_000.0;
    sim.heard.clear();
    // The writer stalls for a second, then comes back, then hands over far too much at once.
    sim.frames += 13;
    sim.run(2.0, 0.0, hz, true);
    let mut heard = std::mem::take(&mut sim.heard);
    assert_eq!(sim.writer.meters.underruns.get(), 1);
    let now = (sim.frames as f64 * FRAME_NS) as u64;
    let mut skipped = 0.0;
    for _ in 0..4 {
        let step = TAU * hz / f64::from(SAMPLE_RATE);
        let frame: Vec<f32> =
            (0..FRAME_SIZE).map(|i| (0.5 * (sim.phase + step * i as f64).sin()) as f32).collect();
        sim.phase = (sim.phase + step * FRAME_SIZE as f64) % TAU;
        let written = sim.writer.write(&frame, now).unwrap();
        skipped += written.skipped;
        assert!(sim.writer.level(now) <= 0.161, "{} s wait", sim.writer.level(now));
    }
    assert!(skipped > 0.15, "only {skipped} s skipped");
    for _ in 0..40 {
        let at = (sim.blocks as f64 * sim.block_ns) as u64;
        sim.device.fill(&mut sim.out, at, 0);
        heard.extend_from_slice(&sim.out);
        sim.blocks += 1;
    }
    assert!(sim.writer.meters.skipped.get() > 0);
    let jump = heard.windows(2).map(|w| f64::from((w[1] - w[0]).abs())).fold(0.0, f64::max);
    println!("largest jump {jump}, tone's own {steepest}");
    assert!(jump < steepest + 0.01, "a jump of {jump}; the tone's own steepest is {steepest}");
    assert!(heard.iter().filter(|v| **v == 0.0).count() > 40_000 / 2, "it never went silent");
}

#[test]
fn a_device_that_stands_still_for_two_seconds_goes_on_with_a_full_reserve() {
    let hz = 200.0;
    let mut sim = Simulation::new(48_000, 960, 0.0);
    sim.run(4.0, 0.0, hz, false);
    assert_eq!(sim.writer.meters.underruns.get(), 0);
    // The device asks for nothing, while frames go on coming.
    let end = (sim.frames + 25) as f64 * FRAME_NS;
    while (sim.frames as f64) * FRAME_NS < end {
        let now = (sim.frames as f64 * FRAME_NS) as u64;
        sim.writer.write(&[0.1; FRAME_SIZE], now).unwrap();
        assert!(sim.writer.level(now) <= 0.161, "{} s wait", sim.writer.level(now));
        sim.frames += 1;
    }
    sim.blocks = (end / sim.block_ns) as u64;
    assert!(sim.writer.lost() > 0);
    sim.run(10.0, 0.0, hz, false);
    assert_eq!(sim.writer.meters.underruns.get(), 0, "level {} s", sim.writer.level(end as u64));
}

#[test]
fn playing_begins_with_the_whole_reserve_wherever_in_a_block_the_first_frame_comes() {
    for (rate, block) in [(48_000, 960), (24_000, 240), (44_100, 512), (96_000, 2048)] {
        for phase in 0..8 {
            let mut sim = Simulation { with_reference: false, ..Simulation::new(rate, block, 0.0) };
            let whole = sim.writer.set_point();
            let first = 20.0 * FRAME_NS + sim.block_ns * f64::from(phase) / 8.0;
            for frame in 0..10 {
                let now = first + FRAME_NS * f64::from(frame);
                while (sim.blocks as f64) * sim.block_ns <= now {
                    sim.device.fill(&mut sim.out, (sim.blocks as f64 * sim.block_ns) as u64, 0);
                    sim.blocks += 1;
                }
                let waited = sim.writer.write(&[0.1; FRAME_SIZE], now as u64).unwrap().waited;
                assert!(
                    frame == 0 || (waited - whole).abs() < 0.001,
                    "{rate} Hz, blocks of {block}, {phase}/8 into one: {waited:.4} s wait, {whole:.4} were to"
                );
            }
        }
    }
}
