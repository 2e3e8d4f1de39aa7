"""Runs WebRTC's or Speex's canceller on what `echo.py` wrote; runs in the peers' environment (numpy and one of them).

echo_peer.py webrtc|speex FOLDER: in.npy float32 [2 * signals, samples] (microphone, played, ...) at 24 kHz, to out.npy.
"""

import sys
from collections.abc import Callable

import numpy as np

RATE, FRAME = 24000, 240


def webrtc() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """WebRTC's audio processing as it comes, without noise suppression, gain control and voice detection."""
    from aec_audio_processing import AudioProcessor

    processor = AudioProcessor(enable_aec=True, enable_ns=False, enable_agc=False, enable_vad=False)
    processor.set_stream_format(RATE, 1, RATE, 1)
    processor.set_reverse_stream_format(RATE, 1)

    def step(mic: np.ndarray, played: np.ndarray) -> np.ndarray:
        processor.process_reverse_stream(played.tobytes())
        return np.frombuffer(processor.process_stream(mic.tobytes()), np.int16)

    return step


def speex() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Speex's canceller and preprocessor with a 200 ms filter."""
    from pyaec import Aec

    canceller = Aec(FRAME, RATE // 5, RATE, True)
    return lambda mic, played: np.array(canceller.cancel_echo(mic.tolist(), played.tolist()), np.int16)


def main() -> None:
    make, folder = {"webrtc": webrtc, "speex": speex}[sys.argv[1]], sys.argv[2]
    signals = np.clip(np.load(f"{folder}/in.npy") * 32768, -32768, 32767).astype(np.int16)
    outputs = np.zeros((len(signals) // 2, signals.shape[1]), np.float32)
    for output, mic, played in zip(outputs, signals[::2], signals[1::2], strict=True):
        step = make()
        for start in range(0, mic.size // FRAME * FRAME, FRAME):
            now = slice(start, start + FRAME)
            output[now] = step(mic[now], played[now]) / 32768
    np.save(f"{folder}/out.npy", outputs)


main()
