"""A live conversation on one screen of the terminal, or in plain lines where there is no terminal."""

import sys
from types import TracebackType
from typing import IO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from .file_screen import say
from .live_state import BUDGET_MS, SILENCE_DB, LiveState, clock

_REDRAWS_A_SECOND = 10
_PLAIN_STATUS_EVERY = 10.0  # seconds


class LiveView:
    """Draws a LiveState in whatever space there is: words on top, then levels, figures, devices and keys."""

    def __init__(self, state: LiveState) -> None:
        self.state = state

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(options.max_width, 8)
        height = options.height or console.height
        # What goes first where the screen is too low: the last of these.
        parts = [self._levels(width), [self._figures()], [self._keys()], [self._devices()]]
        shown: list[list[Text]] = []
        room = height - 3  # for the words
        for part in parts:
            lines = [line for text in part for line in text.wrap(console, width)]
            if len(lines) <= room:
                shown.append(lines)
                room -= len(lines)
        below = [line for lines in shown for line in lines]
        words_room = max(height - len(below) - 1, 1)
        latest = self.state.words.strip()[-2 * width * height :]
        words = list(Text(latest).wrap(console, width))[-words_room:]
        words += [Text()] * (words_room - len(words))
        yield Text("\n").join([*words, self._title(width), *below][:height])

    def _title(self, width: int) -> Text:
        state = self.state
        status = "paused" if state.paused else "muted" if state.muted else "listening"
        title = f"── {state.model} · {status} · {clock(state.elapsed)} "
        style = "yellow" if state.paused or state.muted else "green"
        return Text(title[:width].ljust(width, "─"), style=style)

    def _levels(self, width: int) -> list[Text]:
        return [
            _meter("you", self.state.user_db, width, "cyan"),
            _meter("moshi", self.state.moshi_db, width, "magenta"),
        ]

    def _figures(self) -> Text:
        text = Text()
        for part, worry in figures(self.state):
            text.append(" · " if text else "")
            text.append(part, style="bold red" if worry else "")
        return text

    def _keys(self) -> Text:
        keys = Text.from_markup("[bold]m[/]ute  [bold]p[/]ause  [bold]s[/]ave  [bold]q[/]uit")
        return keys.append(f"   {self.state.notice}", style="yellow") if self.state.notice else keys

    def _devices(self) -> Text:
        audio = self.state.audio
        return Text(f"microphone {audio.microphone} · speaker {audio.speaker}", style="dim")


def figures(state: LiveState) -> list[tuple[str, bool]]:
    """The conversation's figures, each with whether it is one to worry about."""
    audio = state.audio
    parts = [
        (f"step {state.median_ms:.0f} of {BUDGET_MS:.0f} ms", state.median_ms > BUDGET_MS),
        (f"worst {state.worst_ms:.0f}", state.worst_ms > BUDGET_MS),
        (f"lag {audio.lag_ms:.0f} ms", audio.lag_ms > 2 * BUDGET_MS),
        (f"dropped {audio.dropped}", audio.dropped > 0),
        (f"underruns {audio.underruns}", audio.underruns > 0),
    ]
    if audio.echo_db is not None:
        parts.append((f"echo -{audio.echo_db:.0f} dB", False))
    return parts


def _meter(name: str, level: float, width: int, style: str) -> Text:
    label, number = f"{name:<6}", f" {level:4.0f} dB"
    room = max(min(width - len(label) - len(number), 60), 0)
    full = round(room * (1 - level / SILENCE_DB))
    text = Text(label).append("█" * full, style=style).append("░" * (room - full), style="dim")
    return text.append(number) if room else Text(f"{name} {level:.0f}")


class LiveScreen:
    """Shows a conversation while it goes on.

    On a terminal: one screen of its own, redrawn ten times a second; when it closes, the words stay on the terminal.
    Else plain lines: words to standard output as they come, notices and a line of figures now and then to `console`.
    """

    def __init__(self, state: LiveState, console: Console, words_to: IO[str] | None = None) -> None:
        self.state = state
        self._console = console
        self._words_to = words_to or sys.stdout
        self._live: Live | None = None
        if console.is_terminal and self._words_to.isatty():
            self._live = Live(LiveView(state), console=console, screen=True, refresh_per_second=_REDRAWS_A_SECOND)
        self._next_status = _PLAIN_STATUS_EVERY
        self._in_line = False

    def words(self, text: str) -> None:
        """Show the next piece of what Moshi says."""
        if not text:
            return
        self.state.words += text
        if self._live is None:
            say(self._words_to, text)
            self._in_line = True

    def notice(self, text: str) -> None:
        """Tell the user something: on the screen until the next one, or as a line."""
        self.state.notice = text
        if self._live is None:
            self._line(text)

    def tick(self) -> None:
        """Called once a step: prints the figures from time to time where there is no screen."""
        if self._live is None and self.state.elapsed >= self._next_status:
            self._next_status += _PLAIN_STATUS_EVERY
            self._line(f"{clock(self.state.elapsed)} · " + " · ".join(part for part, _ in figures(self.state)))

    def _line(self, text: str) -> None:
        if self._in_line and self._console.file is self._words_to:
            say(self._words_to, "\n")
            self._in_line = False
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "LiveScreen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            if self.state.words:
                say(self._words_to, self.state.words.strip() + "\n")
        elif self._in_line:
            say(self._words_to, "\n")
