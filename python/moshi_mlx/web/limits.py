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


class RateLimit:
    """A leaking bucket for bytes, messages and sound: bursts of `burst_seconds` are fine, more isn't."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._bytes = self._messages = self._sound = 0.0
        self._last: float | None = None

    def add(self, size: int, now: float) -> None:
        """Count a message of `size` bytes.

        Raises:
            StreamError: it's too large, or more than the rate allows.
        """
        limits = self._limits
        if size > limits.message_bytes:
            raise TooLargeError(f"A message of {size} bytes is too large; send at most {limits.message_bytes}.")
        passed = now - self._last if self._last is not None else 0.0
        self._last = now
        self._bytes = max(0.0, self._bytes - passed * limits.bytes_per_second) + size
        self._messages = max(0.0, self._messages - passed * limits.messages_per_second) + 1
        self._sound = max(0.0, self._sound - passed * limits.sound_per_second)
        if self._bytes > limits.bytes_per_second * limits.burst_seconds:
            raise StreamError("Too many bytes at a time; send sound at the speed of speech.")
        if self._messages > limits.messages_per_second * limits.burst_seconds:
            raise StreamError("Too many messages at a time; send frames of 20 to 80 ms.")

    def hear(self, seconds: float) -> None:
        """Count the sound of the message that was added last.

        Raises:
            StreamError: it's more than the rate allows.
        """
        self._sound += seconds
        if self._sound > self._limits.sound_per_second * self._limits.burst_seconds:
            raise StreamError("Too much sound at a time; send it at the speed of speech.")
