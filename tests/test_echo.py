"""The echo canceller in two of the benchmark's rooms, and what may go wrong around it."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import echo as benchmark
from echo_rooms import RATE, Scene, draw_room, draw_scene, speech_voices

from moshi_mlx.audio_io import EchoCanceller
from moshi_mlx.errors import InputError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Speech in two rooms; the thresholds below are well under what is measured there."""
    try:
        voices = list(speech_voices().values())
    except RuntimeError as error:
        pytest.skip(str(error))
    return [draw_scene(draw_room(seed), voices, seconds=8.0) for seed in (1, 7)]


@pytest.fixture(scope="module")
def sound(scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Two seconds of microphone and played signal."""
    mic = (scenes[0].echo + scenes[0].near)[: 2 * RATE].astype(np.float32)
    return mic, scenes[0].played[: 2 * RATE].astype(np.float32)


def test_echo_falls_and_the_users_voice_stays(scenes: list[Scene]) -> None:
    ours, untreated = benchmark.ours(scenes), benchmark.untreated(scenes)
    print(ours, untreated)
    assert min(ours.erle_db) > 20.0
    gains = np.subtract(ours.si_sdr_db, untreated.si_sdr_db)
    assert min(gains) > 5.0


def test_any_cut_of_the_stream_gives_the_same_samples(sound: tuple[np.ndarray, np.ndarray]) -> None:
    mic, played = sound
    whole = EchoCanceller().process(mic, played)
    for size in (1920, 333, 7000):
        canceller = EchoCanceller()
        pieces = [canceller.process(mic[i : i + size], played[i : i + size]) for i in range(0, mic.size, size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_without_anything_played_the_voice_comes_out_late_as_stated(
    sound: tuple[np.ndarray, np.ndarray],
) -> None:
    mic, _ = sound
    canceller = EchoCanceller(24000)
    out = canceller.process(mic, np.zeros_like(mic))
    np.testing.assert_allclose(out[: canceller.delay], 0.0, atol=1e-6)
    heard, expected = (np.fft.rfft(x) for x in (out[canceller.delay :], mic[: -canceller.delay]))
    voice = slice(200 * heard.size // (RATE // 2), None)  # above 200 Hz, where nothing is left of the filter at 20 Hz
    wrong = np.sum(np.abs(heard - expected)[voice] ** 2) / np.sum(np.abs(expected)[voice] ** 2)
    assert 10 * np.log10(wrong) < -20


def test_a_microphones_offset_is_no_sound(scenes: list[Scene]) -> None:
    scene = scenes[0]
    offset = Scene(scene.room, scene.played, scene.echo + 0.1, scene.near)
    (erle,) = benchmark.ours([offset]).erle_db
    (without,) = benchmark.ours([scene]).erle_db
    assert erle > without


def test_silence_stays_silence() -> None:
    zeros = np.zeros(RATE, np.float32)
    assert not EchoCanceller().process(zeros, zeros).any()


def test_values_that_are_no_sound_leave_no_trace(sound: tuple[np.ndarray, np.ndarray]) -> None:
    mic, played = (x.copy() for x in sound)
    mic[[100, 5000]], played[[90, 7000]] = (np.nan, -np.inf), (np.inf, np.nan)
    assert np.isfinite(EchoCanceller().process(mic, played)).all()


def test_nothing_in_gives_nothing_out() -> None:
    empty = np.zeros(0, np.float32)
    assert EchoCanceller().process(empty, empty).shape == (0,)


def test_two_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="10 microphone samples came with 9 played ones"):
        EchoCanceller().process(np.zeros(10, np.float32), np.zeros(9, np.float32))


@pytest.mark.parametrize("rate", [0, 4000, 96000])
def test_a_rate_without_a_meaning_is_refused(rate: int) -> None:
    with pytest.raises(InputError, match=f"{rate} Hz"):
        EchoCanceller(rate)


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_other_rates_cancel_too(rate: int, scenes: list[Scene]) -> None:
    """A signal at another rate is the same room at another speed: 24 kHz samples serve for all."""
    scene = scenes[1]
    canceller = EchoCanceller(rate, high_pass=True, noise_suppression=True)
    out = canceller.process(scene.echo.astype(np.float32), scene.played.astype(np.float32))
    settled = slice(5 * RATE, None)
    reduction = 10 * np.log10(np.sum(scene.echo[settled] ** 2) / np.sum(out[settled] ** 2))
    assert reduction > 12.0, f"{reduction:.1f} dB"


def test_floats_of_any_size_are_sound_and_nothing_else_is(sound: tuple[np.ndarray, np.ndarray]) -> None:
    mic, played = sound
    single = EchoCanceller().process(mic, played)
    double = EchoCanceller().process(mic.astype(np.float64), played.astype(np.float64))
    assert double.dtype == np.float32
    np.testing.assert_array_equal(double, single)
    for wrong in (np.zeros(10, np.int16), np.zeros((1, 10), np.float32)):
        with pytest.raises(InputError, match=f"{wrong.dtype} of shape"):
            EchoCanceller().process(wrong, wrong)
