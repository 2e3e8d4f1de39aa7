//! The echo canceller on small rooms made here: noise bursts for voices, an exponential tail for the room.

use assert_no_alloc::assert_no_alloc;

use crate::echo::{Biquad, EchoCanceller, EchoError, EchoOptions, energy};

const RATE: usize = 24_000;

/// Uniform noise in [-1, 1].
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Coloured noise that swells and stops four times a second, as speech does.
fn talk(samples: usize, seed: u64) -> Vec<f32> {
    let mut noise = Noise(seed);
    let (mut smooth, phase) = (0.0, seed as f32);
    (0..samples)
        .map(|i| {
            smooth = 0.7 * smooth + 0.3 * noise.next();
            let swell = (i as f32 / RATE as f32 * 25.0 + phase).sin().max(0.0);
            0.4 * smooth * swell
        })
        .collect()
}

/// What a microphone hears of `played`: `delay` samples later, with 60 ms of a tail that falls by 60 dB in 300 ms.
fn heard(played: &[f32], delay: usize) -> Vec<f32> {
    let mut noise = Noise(99);
    let tail: Vec<f32> =
        (0..RATE * 60 / 1000).map(|i| 0.1 * noise.next() * 10f32.powf(-3.0 * i as f32 / 7_200.0)).collect();
    let mut echo = vec![0.0; played.len()];
    for (start, &x) in played.iter().enumerate().filter(|(_, x)| **x != 0.0) {
        let rest = echo.get_mut(start + delay..).unwrap_or_default();
        rest.iter_mut().zip(&tail).for_each(|(y, h)| *y += x * h);
    }
    echo
}

fn canceller() -> EchoCanceller {
    EchoCanceller::new(RATE as u32, EchoOptions::default()).unwrap()
}

fn cancel(mic: &[f32], played: &[f32]) -> Vec<f32> {
    let mut out = mic.to_vec();
    canceller().process(&mut out, played).unwrap();
    out
}

fn db(power: f32) -> f32 {
    10.0 * power.log10()
}

#[test]
fn echo_is_found_and_removed_at_any_delay() {
    let played = talk(5 * RATE, 1);
    for delay_ms in [5, 120, 300] {
        let mic = heard(&played, RATE * delay_ms / 1000);
        let out = cancel(&mic, &played);
        let reduction = db(energy(&mic[3 * RATE..]) / energy(&out[3 * RATE..]));
        assert!(reduction > 15.0, "{delay_ms} ms: the echo fell by {reduction:.1} dB only");
    }
}

#[test]
fn a_voice_comes_through_while_the_loudspeaker_talks() {
    let played = talk(6 * RATE, 1);
    let echo = heard(&played, 3_000);
    let mut near = talk(6 * RATE, 5);
    near[..2 * RATE].fill(0.0);
    let mic: Vec<f32> = echo.iter().zip(&near).map(|(a, b)| a + b).collect();
    let out = cancel(&mic, &played);
    let delay = canceller().delay();
    let (near, out) = (&near[3 * RATE..6 * RATE - delay], &out[3 * RATE + delay..]);
    let before = db(energy(near) / energy(&echo[3 * RATE..]));
    let wrong: Vec<f32> = near.iter().zip(out).map(|(a, b)| a - b).collect();
    let after = db(energy(near) / energy(&wrong));
    assert!(after > before + 8.0, "voice to the rest: {before:.1} dB before, {after:.1} dB after");
}

#[test]
fn without_echo_all_that_is_heard_comes_out_unchanged_and_late_as_stated() {
    let mut mic = talk(RATE, 3);
    let out = cancel(&mic, &vec![0.0; mic.len()]);
    Biquad::high_pass(20.0 / RATE as f64).apply(&mut mic);
    let delay = canceller().delay();
    assert!(out[..delay].iter().all(|x| x.abs() < 1e-6));
    let worst = mic.iter().zip(&out[delay..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-5, "differs by {worst}");
}

#[test]
fn any_cut_of_the_stream_gives_the_same_samples() {
    let played = talk(RATE, 1);
    let mic = heard(&played, 700);
    let whole = cancel(&mic, &played);
    for size in [1, 127, 480, 1920, 5000] {
        let mut canceller = canceller();
        let mut out = mic.clone();
        for (mic, played) in out.chunks_mut(size).zip(played.chunks(size)) {
            canceller.process(mic, played).unwrap();
        }
        assert!(out == whole, "blocks of {size} give something else");
    }
}

#[test]
fn silence_stays_silence() {
    let zeros = vec![0.0; 2 * RATE];
    assert!(cancel(&zeros, &zeros).iter().all(|x| *x == 0.0));
    let loud = talk(2 * RATE, 1);
    assert!(energy(&cancel(&zeros, &loud)) < 1e-6, "something played makes no echo by itself");
}

#[test]
fn drifting_clocks_are_followed() {
    let played = talk(12 * RATE, 1);
    let straight = heard(&played, 2_000);
    // 100 ppm slow, by linear interpolation of a signal with little above 4 kHz.
    let mic: Vec<f32> = (0..straight.len())
        .map(|i| {
            let at = i as f64 * (1.0 - 100e-6);
            let (whole, part) = (at as usize, at.fract() as f32);
            straight[whole] * (1.0 - part) + straight.get(whole + 1).unwrap_or(&0.0) * part
        })
        .collect();
    let mut canceller = canceller();
    let mut out = mic.clone();
    canceller.process(&mut out, &played).unwrap();
    let found = canceller.drift_ppm();
    assert!((found - 100.0).abs() < 10.0, "found {found:.1} ppm");
    let reduction = db(energy(&mic[8 * RATE..]) / energy(&out[8 * RATE..]));
    assert!(reduction > 15.0, "the echo fell by {reduction:.1} dB only");
}

#[test]
fn a_loudspeaker_that_moves_is_learned_anew() {
    let played = talk(10 * RATE, 1);
    let (first, second) = (heard(&played, 800), heard(&played, 5_000));
    let mic = [&first[..5 * RATE], &second[5 * RATE..]].concat();
    let out = cancel(&mic, &played);
    let reduction = db(energy(&mic[8 * RATE..]) / energy(&out[8 * RATE..]));
    assert!(reduction > 12.0, "the echo fell by {reduction:.1} dB only");
}

#[test]
fn values_that_are_no_sound_pass_without_a_trace() {
    let played = talk(8 * RATE, 1);
    let mic = heard(&played, 1_000);
    let (mut hostile_mic, mut hostile_played) = (mic.clone(), played.clone());
    for (i, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN].into_iter().enumerate() {
        hostile_mic[RATE + 1_000 * i] = bad;
        hostile_played[RATE + 1_700 * i] = bad;
    }
    let out = cancel(&hostile_mic, &hostile_played);
    assert!(out.iter().all(|x| x.is_finite()));
    let reduction = db(energy(&mic[5 * RATE..]) / energy(&out[5 * RATE..]));
    assert!(reduction > 12.0, "the echo fell by {reduction:.1} dB only");
}

#[test]
fn a_small_room_that_answers_a_constant_loudest_hides_no_echo() {
    // The walls of a small room return pressure as pressure, so that its answer adds up at the lowest frequencies.
    let pressed: Vec<f32> = talk(8 * RATE, 1).iter().map(|x| x + 0.02 * x.abs() + 0.003).collect();
    let tail: Vec<f32> = (0..RATE / 10)
        .map(|i| 0.02 * (-(i as f32) / 1_000.0).exp() * (1.0 + (i as f32 * 1.7).sin()))
        .collect();
    let mut mic = vec![0.0; pressed.len()];
    for (start, &x) in pressed.iter().enumerate() {
        let rest = mic.get_mut(start + 1_500..).unwrap_or_default();
        rest.iter_mut().zip(&tail).for_each(|(y, h)| *y += x * h);
    }
    let out = cancel(&mic, &pressed);
    let reduction = db(energy(&mic[3 * RATE..]) / energy(&out[3 * RATE..]));
    assert!(reduction > 25.0, "the echo fell by {reduction:.1} dB only");
}

#[test]
fn what_nobody_hears_is_removed_and_no_more() {
    let tone = |hz: f32| (0..4 * RATE).map(move |i| 0.1 * (i as f32 * hz * 0.000_261_799_4).sin() + 0.05);
    for (hz, lowest, highest) in [(5.0, -30.0, -20.0), (60.0, -0.2, 0.1), (1_000.0, -0.1, 0.1)] {
        let mic: Vec<f32> = tone(hz).collect();
        let out = cancel(&mic, &vec![0.0; mic.len()]);
        let kept = db(energy(&out[2 * RATE..]) / (0.005 * 2.0 * RATE as f32));
        assert!((lowest..highest).contains(&kept), "{hz} Hz beside an offset: {kept:.2} dB");
    }
}

#[test]
fn two_lengths_are_refused_and_change_nothing() {
    let (mut first, mut second) = (canceller(), canceller());
    let played = talk(1_000, 1);
    let refused = first.process(&mut [0.0; 10], &played);
    assert_eq!(refused, Err(EchoError::Lengths { mic: 10, played: 1_000 }));
    let (mut a, mut b) = (talk(1_000, 2), talk(1_000, 2));
    first.process(&mut a, &played).unwrap();
    second.process(&mut b, &played).unwrap();
    assert_eq!(a, b);
}

#[test]
fn rates_without_a_meaning_are_refused() {
    for rate in [0, 7_999, 96_000] {
        assert_eq!(EchoCanceller::new(rate, EchoOptions::default()).err(), Some(EchoError::Rate(rate)));
    }
}

#[test]
fn high_pass_and_noise_suppression_do_what_they_say() {
    let hum: Vec<f32> = (0..4 * RATE).map(|i| 0.1 * (i as f32 * 0.003).sin()).collect();
    let mut noise = Noise(4);
    let hiss: Vec<f32> = (0..4 * RATE).map(|_| 0.01 * noise.next()).collect();
    let played = vec![0.0; 4 * RATE];
    for (mic, options, least) in [
        (hum, EchoOptions { high_pass: true, ..EchoOptions::default() }, 20.0),
        (hiss, EchoOptions { noise_suppression: true, ..EchoOptions::default() }, 6.0),
    ] {
        let mut out = mic.clone();
        EchoCanceller::new(RATE as u32, options).unwrap().process(&mut out, &played).unwrap();
        let lowered = db(energy(&mic[2 * RATE..]) / energy(&out[2 * RATE..]));
        assert!(lowered > least, "{options:?}: lowered by {lowered:.1} dB");
    }
}

#[test]
fn processing_allocates_nothing() {
    let played = talk(2 * RATE, 1);
    let mut mic = heard(&played, 1_000);
    let mut canceller = canceller();
    assert_no_alloc(|| canceller.process(&mut mic, &played)).unwrap();
}
