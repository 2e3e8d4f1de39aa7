"""Ctrl-C as a request to finish well, and a second one as an order to stop."""

import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, Ctrl-C and SIGTERM end the work: by KeyboardInterrupt until `begin`, then by `requested`.

    From `begin` on the first one only sets `requested`, so that the work can be finished well; a second one raises
    KeyboardInterrupt.
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
        raises = self._raises or self.requested
        self.requested = True
        if raises:
            raise KeyboardInterrupt

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
