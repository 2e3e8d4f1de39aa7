"""What one client may take, so that none can take it from the others."""

from __future__ import annotations

from dataclasses import dataclass

from .ogg import StreamError, TooLargeError


@dataclass(frozen=True)
class Limits:
    """Bounds on connections and conversations; times in seconds, sizes in bytes."""

    max_sessions: int = 1
    max_waiting: int = 16
    max_connections: int = 128
    keep_seconds: float = 30.0  # a lost connection's conversation waits this long for its client
    idle_seconds: float = 30.0  # without any sound from the client
    session_seconds: float = 3600.0
    stalled_seconds: float = 20.0  # without the client reading anything
    heartbeat_seconds: float = 10.0
    header_seconds: float = 10.0  # for the HTTP request to be whole
    message_bytes: int = 1 << 18
    bytes_per_second: float = 4 * 96_000  # four times float32 sound in real time
    messages_per_second: float = 500.0
    sound_per_second: float = 8.0  # seconds of sound: Opus says much in few bytes
    burst_seconds: float = 10.0
    max_lag: float = 0.4  # of a user's frame before it's stale
    outgoing_frames: int = 25


class Bucket:
    """A leaking bucket: `rate` a second runs out of it, and it holds what runs out in `burst_seconds`."""

    def __init__(self, rate: float, burst_seconds: float):
        self._rate = rate
        self._size = rate * burst_seconds
        self._level = 0.0
        self._last: float | None = None

    def add(self, amount: float, now: float) -> bool:
        """Pour in what came at `now`, in seconds; returns whether it fits."""
        passed = now - self._last if self._last is not None else 0.0
        self._last = now
        self._level = max(0.0, self._level - passed * self._rate) + amount
        return self._level <= self._size


class RateLimit:
    """A leaking bucket each for bytes, messages and sound: bursts of `burst_seconds` are fine, more isn't."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._bytes = Bucket(limits.bytes_per_second, limits.burst_seconds)
        self._messages = Bucket(limits.messages_per_second, limits.burst_seconds)
        self._sound = Bucket(limits.sound_per_second, limits.burst_seconds)
        self._now = 0.0

    def add(self, size: int, now: float) -> None:
        """Count a message of `size` bytes.

        Raises:
            StreamError: it's too large, or more than the rate allows.
        """
        limits = self._limits
        if size > limits.message_bytes:
            raise TooLargeError(f"A message of {size} bytes is too large; send at most {limits.message_bytes}.")
        self._now = now
        if not self._bytes.add(size, now):
            raise StreamError("Too many bytes at a time; send sound at the speed of speech.")
        if not self._messages.add(1, now):
            raise StreamError("Too many messages at a time; send frames of 20 to 80 ms.")

    def hear(self, seconds: float) -> None:
        """Count the sound of the message that was added last.

        Raises:
            StreamError: it's more than the rate allows.
        """
        if not self._sound.add(seconds, self._now):
            raise StreamError("Too much sound at a time; send it at the speed of speech.")
