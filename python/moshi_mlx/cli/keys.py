"""Single keys from the terminal, without waiting for Enter."""

import contextlib
import os
import select
import sys
from types import TracebackType
from typing import Any

try:
    import termios
    import tty
except ImportError:  # no terminals of this kind on this system
    termios = None  # type: ignore[assignment]


class Keys:
    """While entered, the terminal gives keys one by one and doesn't show them; nothing where input is no terminal.

    Ctrl-Z is a key as others are: a conversation can't be put aside as a whole, with its devices and its screen.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._before: Any = None

    def pressed(self) -> str:
        """The keys pressed since the last call, in lower case; "" where there were none. Never waits."""
        if self._descriptor is None:
            return ""
        try:
            ready, _, _ = select.select([self._descriptor], [], [], 0)
            if not ready:
                return ""
            data = os.read(self._descriptor, 64)
        except OSError:
            data = b""
        if not data:  # the terminal is gone
            self._descriptor = None
        return data.decode("utf-8", errors="ignore").lower()

    def __enter__(self) -> "Keys":
        if termios is not None and sys.stdin is not None and sys.stdin.isatty():
            self._descriptor = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._descriptor)
            tty.setcbreak(self._descriptor)  # Ctrl-C still interrupts
            settings = termios.tcgetattr(self._descriptor)
            nothing = bytes([os.fpathconf(self._descriptor, "PC_VDISABLE") & 0xFF])
            for suspends in ("VSUSP", "VDSUSP"):  # the second on macOS
                if hasattr(termios, suspends):
                    settings[6][getattr(termios, suspends)] = nothing
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            with contextlib.suppress(OSError, termios.error):  # gone, there is nothing to restore
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)
            self._before = None
        self._descriptor = None
