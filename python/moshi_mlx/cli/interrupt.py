"""Ctrl-C, or a terminal that closes, as a request to finish well, and a second Ctrl-C as an order to stop."""

import signal
from types import FrameType, TracebackType
from typing import Any

_HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; not on every system
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([_HANGUP] if _HANGUP else []))


class StopRequest:
    """While entered, Ctrl-C, SIGTERM and SIGHUP end the work: by KeyboardInterrupt until `begin`, then by `requested`.

    From `begin` on the first one only sets `requested`, so that the work can be finished well; a second one raises
    KeyboardInterrupt, unless it's SIGHUP, which a terminal that closes may send twice: the shell does, and the system.
    """

    def __init__(self) -> None:
        self.requested = False
        self._raises = True
        self._before: dict[signal.Signals, Any] = {}

    def begin(self) -> None:
        """From now on there is something to finish.

        Raises:
            KeyboardInterrupt: a request came before, and code that ignores exceptions swallowed it.
        """
        if self.requested:
            raise KeyboardInterrupt
        self._raises = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        raises = self._raises or (self.requested and number != _HANGUP)
        self.requested = True
        if raises:
            raise KeyboardInterrupt

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            if number == _HANGUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: it shall go on
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
