//! The callbacks allocate nothing and make no system call, whatever happens to them.

use assert_no_alloc::{AllocDisabler, assert_no_alloc};
use cpal::{I24, Sample};

use crate::capture::{CaptureReader, capture_pair};
use crate::frame::FRAME_SIZE;
use crate::playback::{PlaybackWriter, playback_pair};

#[global_allocator]
static ALLOCATOR: AllocDisabler = AllocDisabler;

const BLOCK: usize = 480;

/// Both callbacks through start, steady play, skip, underrun, recovery and overrun; `guard` runs each block.
fn all_that_can_happen(guard: impl Fn(&mut dyn FnMut())) -> (CaptureReader, PlaybackWriter) {
    let (mut capture, reader) = capture_pair(48_000, 2).unwrap();
    let (mut writer, mut playback, _played) = playback_pair(48_000, 2).unwrap();
    let frame = vec![0.3f32; FRAME_SIZE];
    let mut out = [0.0f32; BLOCK * 2];
    let input = [0.1f32; BLOCK * 2];
    for block in 0..1_000u64 {
        let now = block * 10_000_000;
        match block {
            // Steady, then far too much at once, then nothing for a while, then steady again.
            0..=200 | 400.. if block % 8 == 0 => {
                writer.write(&frame, now).unwrap();
            }
            250 => (0..5).for_each(|_| {
                writer.write(&frame, now).unwrap();
            }),
            _ => {}
        }
        guard(&mut || {
            capture.take(&input, now, 5_000);
            playback.fill(&mut out, now, 5_000);
        });
    }
    (reader, writer)
}

#[test]
fn callbacks_allocate_nothing() {
    let (reader, writer) = all_that_can_happen(|block| assert_no_alloc(block));
    assert!(reader.meters.overruns.get() > 0, "the capture ring never overflowed");
    assert!(writer.meters.underruns.get() > 0, "playback never ran empty");
    assert!(writer.meters.skipped.get() > 0, "nothing was skipped");
}

#[test]
fn callbacks_allocate_nothing_in_any_sample_format() {
    let (mut capture, _reader) = capture_pair(44_100, 1).unwrap();
    let (mut writer, mut playback, _played) = playback_pair(44_100, 1).unwrap();
    writer.write(&[0.5; FRAME_SIZE], 0).unwrap();
    assert_no_alloc(|| {
        macro_rules! each {
            ($($format:ty),*) => {$(
                let silence: $format = Sample::EQUILIBRIUM;
                let mut block = [silence; 64];
                capture.take(&block, 0, 0);
                playback.fill(&mut block, 0, 0);
            )*};
        }
        capture.take_24(&[I24::EQUILIBRIUM; 64], 0, 0);
        each!(i8, i16, I24, i32, i64, u8, u16, u32, u64, f32, f64);
    });
}

/// In seccomp's strict mode the kernel kills the thread at the first system call other than read, write and exit.
#[cfg(target_os = "linux")]
#[test]
fn callbacks_make_no_system_call() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    let survived = Arc::new(AtomicU32::new(0));
    let seen = survived.clone();
    let (mut capture, _reader) = capture_pair(48_000, 2).unwrap();
    let (mut writer, mut playback, _played) = playback_pair(48_000, 2).unwrap();
    writer.write(&[0.5; FRAME_SIZE], 0).unwrap();
    let mut block = [0.25f32; BLOCK * 2];
    std::thread::spawn(move || {
        // SAFETY: prctl with these arguments only restricts the calling thread.
        let restricted = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) } == 0;
        seen.store(if restricted { 1 } else { 10_000 }, Ordering::SeqCst);
        for block_at in 0..1_000 {
            let now = block_at * 10_000_000;
            capture.take(&block, now, 0);
            playback.fill(&mut block, now, 0);
            seen.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: ends this thread alone, with the one call that strict mode allows; what it owned is leaked.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    // The thread can't be joined: the runtime's own clean-up makes system calls.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut count = 0;
    while count < 1_001 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(5));
        count = survived.load(Ordering::SeqCst);
    }
    if count >= 10_000 {
        eprintln!("seccomp is not allowed here: nothing was checked");
        return;
    }
    assert_eq!(count, 1_001, "the thread was killed in block {count}: a callback made a system call");
}
