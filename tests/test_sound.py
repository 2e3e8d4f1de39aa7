"""Sound files: written so that any program reads them, read as 24 kHz mono whatever they are."""

import io
import os
import subprocess
import sys
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from moshi_mlx.errors import AudioFileError, InputError, StorageError
from moshi_mlx.sound import WavWriter, load_sound, to_int16, write_wav


def tone(seconds: float, rate: int = 24_000, pitch: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def read_wav(source: object) -> tuple[np.ndarray, int]:
    """[samples, channels] in [-1, 1] and the rate, by Python's own reader."""
    with wave.open(source, "rb") as file:  # type: ignore[call-overload]
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return data.reshape(-1, file.getnchannels()) / 32767.0, file.getframerate()


def write_other_wav(path: Path, pcm: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if pcm.ndim == 1 else pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((pcm * 32767).astype("<i2").tobytes())


def test_a_written_file_is_what_another_program_reads(tmp_path: Path) -> None:
    sound = tone(0.5)
    write_wav(tmp_path / "tone.wav", sound)
    samples, rate = read_wav(str(tmp_path / "tone.wav"))
    assert rate == 24_000
    assert samples.shape == (12_000, 1)
    assert np.abs(samples[:, 0] - sound).max() <= 0.5 / 32767


def test_sound_written_in_blocks_equals_sound_written_at_once(tmp_path: Path) -> None:
    stereo = np.stack([tone(0.4), tone(0.4, pitch=660)], axis=1)
    write_wav(tmp_path / "once.wav", stereo)
    with WavWriter(tmp_path / "blocks.wav", channels=2) as writer:
        for start in range(0, len(stereo), 1920):
            writer.write(stereo[start : start + 1920])
        assert writer.seconds == pytest.approx(0.4)
    assert (tmp_path / "blocks.wav").read_bytes() == (tmp_path / "once.wav").read_bytes()


def test_loud_sound_is_clipped_and_not_wrapped() -> None:
    samples = np.frombuffer(to_int16(np.array([2.0, -2.0, 1.0, -1.0, np.nan, np.inf])), "<i2")
    assert samples.tolist() == [32767, -32767, 32767, -32767, 0, 32767]


def test_stereo_into_a_mono_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[10, 2\] was given; expected \[samples\]"):
        to_int16(np.zeros((10, 2)))
    with pytest.raises(InputError, match=r"expected \[samples, 2\]"), WavWriter(tmp_path / "x.wav", 2) as writer:
        writer.write(np.zeros(10))
    assert os.listdir(tmp_path) == []


def test_a_pipe_gets_each_block_and_a_header_with_the_expected_length(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = io.BytesIO()
    reader = threading.Thread(target=lambda: received.write(pipe.read_bytes()))
    reader.start()
    with WavWriter(pipe, expected=3840) as writer:
        writer.write(tone(0.08))
        writer.write(tone(0.08))
    reader.join(10)
    received.seek(0)
    samples, _ = read_wav(received)
    assert len(samples) == 3840
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_reader_that_went_away_is_an_error_with_a_reason() -> None:
    code = (
        "import numpy as np\n"
        "from moshi_mlx.sound import WavWriter\n"
        "from moshi_mlx.errors import StorageError\n"
        "import sys\n"
        "try:\n"
        "    with WavWriter('-') as writer:\n"
        "        for _ in range(1000): writer.write(np.zeros(1920))\n"
        "except StorageError as error:\n"
        "    print(error, file=sys.stderr)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(100)
    process.stdout.close()
    assert process.stderr is not None
    assert "the program that read it has ended" in process.stderr.read().decode()
    process.wait(30)
    process.stderr.close()


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_any_rate_and_both_channels_become_24_khz_mono(tmp_path: Path, rate: int) -> None:
    left, right = tone(1.0, rate, 500), tone(1.0, rate, 900)
    write_other_wav(tmp_path / "stereo.wav", np.stack([left, right], axis=1), rate)
    sound = load_sound(tmp_path / "stereo.wav")
    assert sound.dtype == np.float32
    assert sound.shape == (24_000,)
    expected = (tone(1.0, pitch=500) + tone(1.0, pitch=900)) / 2
    middle = slice(2_400, -2_400)
    half_a_sample = np.abs(np.diff(expected)).max() / 2
    error = np.abs(sound[middle] - expected[middle]).max()
    assert error < half_a_sample, f"off by {error}; half a sample's shift is {half_a_sample}"


def test_24_khz_mono_is_read_as_it_is(tmp_path: Path) -> None:
    write_wav(tmp_path / "tone.wav", tone(0.3))
    again = load_sound(tmp_path / "tone.wav")
    assert again.shape == (7_200,)
    assert np.abs(again - tone(0.3)).max() < 1e-4


def test_what_is_no_sound_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match=r"no-such\.wav"):
        load_sound(tmp_path / "no-such.wav")
    with pytest.raises(AudioFileError, match=tmp_path.name):
        load_sound(tmp_path)
    empty = tmp_path / "empty.wav"
    empty.touch()
    with pytest.raises(AudioFileError, match=r"empty\.wav is empty"):
        load_sound(empty)
    text = tmp_path / "notes.wav"
    text.write_text("These are notes and no sound. " * 100)
    with pytest.raises(AudioFileError, match=r"notes\.wav"):
        load_sound(text)
    write_wav(tmp_path / "silent.wav", np.zeros(0))
    with pytest.raises(AudioFileError, match=r"silent\.wav is empty"):
        load_sound(tmp_path / "silent.wav")


def test_a_sound_that_cant_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder"):
        write_wav(tmp_path / "nowhere" / "tone.wav", tone(0.1))
    assert os.listdir(tmp_path) == []
