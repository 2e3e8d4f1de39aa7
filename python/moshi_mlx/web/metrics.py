"""Counters, gauges and histograms in the text format that Prometheus reads (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable

STEP_BUCKETS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.15, 0.2, 0.4, 0.8)


class Histogram:
    """How often a duration fell below each bound, in seconds."""

    def __init__(self, name: str, about: str, bounds: tuple[float, ...] = STEP_BUCKETS):
        self.name, self.about, self.bounds = name, about, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, seconds: float) -> None:
        with self._lock:
            self._counts[bisect_left(self.bounds, seconds)] += 1
            self._sum += seconds

    def lines(self) -> list[str]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines = [f"# HELP {self.name} {self.about}", f"# TYPE {self.name} histogram"]
        below = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), counts, strict=True):
            below += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{self.name}_sum {total:.6f}", f"{self.name}_count {below}"]


class Metrics:
    """What the server tells at `/metrics`."""

    def __init__(self) -> None:
        self.step_seconds = Histogram("moshi_step_seconds", "Time that one step of the model took.")
        self.wait_seconds = Histogram("moshi_lag_seconds", "Time that a user's frame waited for its step.")
        self._counts: dict[str, int] = {}
        self._about: dict[str, str] = {}
        self._gauges: dict[str, tuple[str, str, Callable[[], float]]] = {}
        for name, about in (
            ("moshi_connections_total", "Connections that were answered."),
            ("moshi_sessions_started_total", "Conversations begun."),
            ("moshi_sessions_resumed_total", "Conversations taken up again after a lost connection."),
            ("moshi_frames_in_dropped_total", "User frames dropped unheard because they were stale."),
            ("moshi_frames_out_dropped_total", "Frames of Moshi dropped because the client read too slowly."),
            ("moshi_refused_total", "Connections refused: busy, wrong token, wrong origin."),
            ("moshi_client_errors_total", "Sessions ended because of what the client sent."),
            ("moshi_server_errors_total", "Sessions ended because of a failure here."),
        ):
            self._counts[name], self._about[name] = 0, about

    def step(self, seconds: float, waited: float) -> None:
        """Note a step of the model; called in the worker's thread."""
        self.step_seconds.observe(seconds)
        self.wait_seconds.observe(waited)

    def add(self, name: str, count: int = 1) -> None:
        """Raise a counter of this class; called in the network's thread only."""
        self._counts[name] += count

    def gauge(self, name: str, about: str, read: Callable[[], float], kind: str = "gauge") -> None:
        """Tell a value that is read anew each time; `kind` is "counter" where it only grows."""
        self._gauges[name] = (about, kind, read)

    def text(self) -> str:
        lines: list[str] = []
        for name, count in self._counts.items():
            lines += [f"# HELP {name} {self._about[name]}", f"# TYPE {name} counter", f"{name} {count}"]
        for name, (about, kind, read) in self._gauges.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {read()!r}"]
        return "\n".join([*lines, *self.step_seconds.lines(), *self.wait_seconds.lines(), ""])
