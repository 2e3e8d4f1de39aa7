"""The Rust extension on its own: sound files in every format, and resampling."""

import io
import shutil
import struct
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest

from moshi_mlx import errors
from moshi_mlx.audio_io import Resampler, read_sound, resample


def tone(hz: float, rate: int, seconds: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def wav(samples: np.ndarray, rate: int) -> bytes:
    """16-bit WAV of samples [channels, n]."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.T * 32767).round().astype("<i2").tobytes())
    return out.getvalue()


def loudest_hz(x: np.ndarray, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(x * np.hanning(len(x))))) * rate / len(x))


def test_a_wav_file_is_read_sample_for_sample(tmp_path: Path) -> None:
    stereo = np.stack([tone(440, 44100, 0.5), tone(880, 44100, 0.5)])
    path = tmp_path / "a.wav"
    path.write_bytes(wav(stereo, 44100))
    for source in (path, str(path), path.read_bytes()):
        samples, rate = read_sound(source)
        assert rate == 44100 and samples.shape == stereo.shape and samples.dtype == np.float32
        assert np.abs(samples - stereo).max() < 1e-4


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg, which makes the files, is not installed")
@pytest.mark.parametrize("rate,channels", [(8000, 1), (22050, 2), (44100, 2), (48000, 6)])
@pytest.mark.parametrize(
    "name", ["x.wav", "x.flac", "x.mp3", "x.ogg", "x.m4a", "x.alac.m4a", "x.aac", "float.wav", "24.wav"]
)
def test_every_format_rate_and_channel_count(tmp_path: Path, name: str, rate: int, channels: int) -> None:
    if name.endswith("mp3") and channels > 2:
        pytest.skip("MP3 has at most two channels")
    if name in ("x.m4a", "x.aac") and channels > 2:
        pytest.skip("the AAC decoder takes one or two channels; see the test of its message")
    codec = {
        "x.ogg": ["-c:a", "libvorbis"],
        "x.alac.m4a": ["-c:a", "alac"],
        "float.wav": ["-c:a", "pcm_f32le"],
        "24.wav": ["-c:a", "pcm_s24le"],
    }.get(name, [])
    path = tmp_path / name
    source = tmp_path / "source.wav"
    source.write_bytes(wav(np.stack([tone(440, rate, 1.0)] * channels), rate))
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, *codec, path], check=True)
    for read_from in (path, path.read_bytes()):
        samples, found = read_sound(read_from)
        assert found == rate and samples.shape[0] == channels
        # AAC and MP3 add up to two of their frames of padding.
        assert 0 <= samples.shape[1] - rate < 2500, samples.shape
        assert abs(loudest_hz(samples[0], rate) - 440) < 3


def test_a_pipes_header_without_a_length_is_no_error() -> None:
    data = bytearray(wav(tone(440, 24000, 0.5)[None], 24000))
    # What ffmpeg and espeak-ng write into a pipe.
    for riff, size in ((0xFFFFFFFF, 0xFFFFFFFF - 36), (0x7FFFF024, 0x7FFFF000)):
        data[4:8] = struct.pack("<I", riff)
        data[40:44] = struct.pack("<I", size)
        samples, _ = read_sound(bytes(data))
        assert samples.shape == (1, 12000)


def test_a_missing_file_a_folder_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(errors.AudioFileError, match="no such file"):
        read_sound(tmp_path / "nowhere.wav")
    with pytest.raises(errors.AudioFileError, match="is a folder"):
        read_sound(tmp_path)
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(errors.AudioFileError, match=r"empty\.wav is empty: 0 bytes"):
        read_sound(tmp_path / "empty.wav")
    with pytest.raises(errors.AudioFileError, match="no samples"):
        read_sound(wav(np.zeros((1, 0), np.float32), 24000))


def test_something_else_is_not_a_sound_file(tmp_path: Path) -> None:
    for content in (b"hello, I am a text\n" * 1000, bytes(10), np.random.default_rng(0).bytes(50_000)):
        path = tmp_path / "x.wav"
        path.write_bytes(content)
        with pytest.raises(errors.AudioFileError, match="isn't a sound file"):
            read_sound(path)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg, which makes the file, is not installed")
def test_aac_with_more_than_two_channels_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "six.wav").write_bytes(wav(np.stack([tone(440, 48000, 0.5)] * 6), 48000))
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "six.wav", tmp_path / "six.m4a"], check=True)
    with pytest.raises(errors.AudioFileError, match=r"no decoder for its encoding.*ffmpeg -i FILE out\.wav"):
        read_sound(tmp_path / "six.m4a")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_file_that_is_cut_off_says_so_and_can_be_read_on_demand(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "whole.wav"
    path.write_bytes(wav(tone(440, 24000, 4.0)[None], 24000))
    if suffix != "wav":
        if shutil.which("ffmpeg") is None:
            pytest.skip("ffmpeg, which makes the file, is not installed")
        coded = tmp_path / f"whole.{suffix}"
        subprocess.run(["ffmpeg", "-v", "error", "-i", path, coded], check=True)
        path = coded
    data = path.read_bytes()
    cut = data[: len(data) // 2]
    with pytest.raises(errors.AudioFileError, match=r"cut off: it holds [12]\.\d+ s of the 4\.\d+ s"):
        read_sound(cut)
    samples, _ = read_sound(cut, partial=True)
    assert 24000 < samples.shape[1] < 72000


@pytest.mark.parametrize("from_rate", [8000, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("to_rate", [24000, 44100, 48000])
def test_resampling_keeps_a_tone_its_length_and_its_place(from_rate: int, to_rate: int) -> None:
    y = resample(tone(440, from_rate, 1.0), from_rate, to_rate)
    expected = tone(440, to_rate, 1.0)
    assert len(y) == len(expected)
    inside = slice(to_rate // 20, -to_rate // 20)
    error = np.abs(y - expected)[inside].max()
    assert error < 0.03, f"off by {error}: more than half a sample of delay is left"


def test_what_24_khz_cannot_hold_is_gone() -> None:
    y = resample(tone(15000, 48000, 1.0), 48000, 24000)
    assert np.abs(y[500:-500]).max() < 1e-3


def test_a_stream_in_pieces_equals_the_whole() -> None:
    x = np.random.default_rng(0).standard_normal(44100).astype(np.float32) * 0.1
    whole = resample(x, 44100, 24000)
    stream = Resampler(44100, 24000)
    cuts = np.sort(np.random.default_rng(1).integers(0, len(x), 60))
    pieces = [stream.process(piece) for piece in np.split(x, cuts)] + [stream.flush()]
    streamed = np.concatenate(pieces)[stream.delay :]
    assert streamed.shape == whole.shape and np.abs(streamed - whole).max() < 1e-5


def test_a_nonsensical_rate_is_refused() -> None:
    with pytest.raises(errors.InputError, match="0 Hz"):
        resample(np.zeros(10, np.float32), 0, 24000)
