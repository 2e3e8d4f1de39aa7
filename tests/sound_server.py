"""A private PulseAudio server with a virtual microphone and a virtual speaker, for tests and benchmarks."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

RATE = 48000
PROGRAMS = ("pulseaudio", "pactl", "pacat", "parec")


def missing_program() -> str | None:
    """The first program that is needed and not installed."""
    return next((name for name in PROGRAMS if shutil.which(name) is None), None)


def hurry() -> None:
    """Where it is allowed (root), go before the machine's other work, as sound does on a user's machine."""
    with contextlib.suppress(OSError):
        os.nice(-10)


class SoundServer:
    """A running server; `env` is what a program needs to use it."""

    def __init__(self, folder: Path, rate: int = RATE) -> None:
        self.rate = rate
        self.env = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_RUNTIME_PATH": str(folder),
            "PULSE_STATE_PATH": str(folder),
            "PULSE_SERVER": f"unix:{folder}/native",
            "HOME": str(folder),
        }
        # PortAudio and other ALSA programs reach the server through this.
        (folder / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        modules = [f"module-native-protocol-unix auth-anonymous=1 socket={folder}/native"]
        self.log = folder / "server.log"
        self.silence: list[subprocess.Popen[bytes]] = []
        self.process = subprocess.Popen(
            [
                "pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no",
                "--disable-shm=yes", "--realtime=no", "--log-level=notice", f"--log-target=file:{self.log}",
                *(f"--load={module}" for module in modules),
            ],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=hurry,
        )  # fmt: skip
        self._wait(folder / "native")
        self.add_devices()

    def _wait(self, socket: Path) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the sound server ended at once: {self.log.read_text()}")
            if socket.exists() and self.pactl("info", check=False):
                return
            time.sleep(0.05)
        raise RuntimeError("the sound server did not start within 20 s")

    def pactl(self, *arguments: str, check: bool = True) -> str:
        """Run pactl and return what it prints."""
        done = subprocess.run(["pactl", *arguments], env=self.env, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"pactl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def load(self, *module: str) -> str:
        """Load a module and return its number."""
        return self.pactl("load-module", *module).strip()

    def add_devices(self) -> None:
        """A virtual microphone `mic`, fed by what is played into the sink `into_mic`, and a virtual speaker."""
        self.add_sink("into_mic", channels=1)
        self.load("module-remap-source", "source_name=mic", "master=into_mic.monitor")
        self.pactl("set-default-source", "mic")
        self.add_speaker()

    def add_speaker(self) -> None:
        """Plug the virtual speaker in, for the first time or again."""
        self.speaker = self.add_sink("speaker", channels=1)
        self.pactl("set-default-sink", "speaker")

    def remove_speaker(self) -> None:
        """Pull the virtual speaker out."""
        self.pactl("unload-module", self.speaker)

    def add_cable(self) -> None:
        """Make microphone and speaker two halves of one stereo sink: one recording holds both, to the sample."""
        self.add_sink("cable", channels=2)
        for kind, name, left_or_right in (
            ("sink", "cable_into_mic", "left"),
            ("sink", "cable_speaker", "right"),
            ("source", "cable_mic", "left"),
        ):
            master = "cable" if kind == "sink" else "cable.monitor"
            self.load(
                f"module-remap-{kind}", f"{kind}_name={name}", f"master={master}", "channels=1", "remix=no",
                "channel_map=mono", f"master_channel_map=front-{left_or_right}",
            )  # fmt: skip
        self.pactl("set-default-source", "cable_mic")
        self.pactl("set-default-sink", "cable_speaker")

    def add_sink(self, name: str, channels: int = 1, sample_format: str = "float32le") -> str:
        """A virtual speaker; what is played into it can be recorded from its monitor. Returns its module's number."""
        number = self.load(
            "module-null-sink", f"sink_name={name}", f"rate={self.rate}", f"channels={channels}",
            f"format={sample_format}", f"sink_properties=device.description={name}",
        )  # fmt: skip
        # A null sink that nobody plays into sleeps for two seconds at a time; no real device does.
        command = ["pacat", "--playback", f"--device={name}", f"--rate={self.rate}", "--latency-msec=20", "/dev/zero"]
        self.silence.append(subprocess.Popen(command, env=self.env, stderr=subprocess.DEVNULL, preexec_fn=hurry))
        return number

    def play(self, samples: np.ndarray, sink: str = "into_mic") -> subprocess.Popen[bytes]:
        """Play float32 samples at the server's rate; returns at once."""
        command = ["pacat", "--playback", f"--device={sink}", "--format=float32le", f"--rate={self.rate}"]
        command += ["--channels=1", "--latency-msec=50"]
        with tempfile.TemporaryFile() as file:
            file.write(np.ascontiguousarray(samples, np.float32).tobytes())
            file.seek(0)
            return subprocess.Popen(command, env=self.env, stdin=file, preexec_fn=hurry)

    @contextmanager
    def playing(self, samples: np.ndarray, sink: str = "into_mic") -> Iterator[None]:
        """Play samples while the block runs, and no longer."""
        process = self.play(samples, sink)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=10)

    @contextmanager
    def recording(self, source: str = "speaker.monitor", channels: int = 1) -> Iterator["Recording"]:
        """Record a source while the block runs; by default what the speaker plays."""
        with tempfile.TemporaryFile() as file:
            command = ["parec", f"--device={source}", "--format=float32le", f"--rate={self.rate}"]
            command += [f"--channels={channels}", "--latency-msec=20", "--raw"]
            process = subprocess.Popen(command, env=self.env, stdout=file, preexec_fn=hurry)
            result = Recording()
            try:
                time.sleep(0.3)
                yield result
            finally:
                process.terminate()
                process.wait(timeout=10)
                file.seek(0)
                data = np.frombuffer(file.read(), np.float32)
                result.samples = data[: len(data) // channels * channels].reshape(-1, channels).T.copy()

    def stop(self) -> None:
        """Stop the server."""
        for silence in self.silence:
            silence.kill()
            silence.wait()
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Recording:
    """Samples float32 [channels, n], there when the recording is over."""

    samples: np.ndarray = np.zeros((0, 0), np.float32)


@contextmanager
def sound_server(rate: int = RATE) -> Iterator[SoundServer]:
    """A server for the length of a block, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="moshi-sound-") as folder:
        server = SoundServer(Path(folder), rate)
        try:
            yield server
        finally:
            server.stop()
