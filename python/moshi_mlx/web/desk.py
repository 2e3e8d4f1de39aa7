"""Who converses, who waits, and whose conversation is kept for them: the seats of the house."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import MoshiError
from .limits import Limits
from .metrics import Metrics
from .worker import Conversation, Speaker, Worker


class BusyError(MoshiError):
    """As many clients converse and wait as may."""


class Holder(Protocol):
    """A connection that holds a seat."""

    def asked_away(self) -> None:
        """Told that the client has come back elsewhere: the seat is no longer the connection's."""


@dataclass(eq=False)
class Seat:
    """A conversation and who holds it; `token` brings its client back to it."""

    token: str
    conversation: Conversation
    resumed: bool = False
    holder: Holder | None = None
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)
    said_goodbye: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def kept(self) -> bool:
        return self.expiry is not None


@dataclass(eq=False)
class _Waiting:
    turn: asyncio.Future[None]
    on_position: Callable[[int], None]


class Desk:
    """Gives out seats, in the order of asking; used by the event loop's thread only."""

    def __init__(self, worker: Worker, make_speaker: Callable[[], Speaker], limits: Limits, metrics: Metrics):
        self._worker = worker
        self._make_speaker = make_speaker
        self._limits = limits
        self._metrics = metrics
        self._seats: dict[str, Seat] = {}
        self._coming = 0  # seats promised to clients whose conversation is being made
        self._waiting: deque[_Waiting] = deque()
        metrics.gauge("moshi_sessions", "Conversations with a client.", lambda: self.active)
        metrics.gauge("moshi_sessions_kept", "Conversations kept for a client to come back.", lambda: self.kept)
        metrics.gauge("moshi_waiting", "Clients in the queue.", lambda: len(self._waiting))
        metrics.gauge("moshi_sessions_max", "Conversations at once, at most.", lambda: limits.max_sessions)

    @property
    def active(self) -> int:
        return sum(not seat.kept for seat in self._seats.values())

    @property
    def kept(self) -> int:
        return sum(seat.kept for seat in self._seats.values())

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def take(self, holder: Holder, token: str | None, on_position: Callable[[int], None]) -> Seat:
        """A seat: the one that `token` names, or a new one once there's room.

        Args:
            on_position: called with 1, 2, ... while the client waits, each time its place in the queue changes.

        Raises:
            BusyError: the queue is full.
        """
        seat = self._seats.get(token) if token else None
        if seat is not None:
            return self._come_back(seat, holder)
        if self._waiting or not self._has_room():
            await self._wait(on_position)
        else:
            self._coming += 1
        try:
            speaker = await asyncio.wrap_future(self._worker.call(self._make_speaker))
        except BaseException:
            self._coming -= 1
            self._let_in()
            raise
        self._coming -= 1
        seat = Seat(secrets.token_urlsafe(18), Conversation(speaker, self._limits.max_lag), holder=holder)
        self._seats[seat.token] = seat
        self._metrics.add("moshi_sessions_started_total")
        return seat

    def leave(self, seat: Seat, holder: Holder, keep: bool, said_goodbye: bool = False) -> None:
        """Give a seat back; `keep` it for a while where the client may return.

        One that closed its connection properly (`said_goodbye`) seldom does: no seat is kept for it while others wait.
        """
        if seat.holder is not holder:
            return  # the client has come back elsewhere
        seat.holder = None
        self._worker.remove(seat.conversation)
        if self._seats.get(seat.token) is not seat:
            return
        if not keep or self._limits.keep_seconds <= 0 or (said_goodbye and self._waiting):
            self._free(seat)
            return
        seat.said_goodbye = said_goodbye
        loop = asyncio.get_running_loop()
        seat.expiry = loop.call_later(self._limits.keep_seconds, self._free, seat)

    def close(self) -> None:
        """Free every seat and send everyone in the queue away."""
        for seat in list(self._seats.values()):
            self._worker.remove(seat.conversation)
            self._free(seat)
        while self._waiting:
            self._waiting.popleft().turn.cancel()

    def _come_back(self, seat: Seat, holder: Holder) -> Seat:
        if seat.expiry is not None:
            seat.expiry.cancel()
            seat.expiry = None
        old, seat.holder = seat.holder, holder
        if old is not None:  # that connection isn't known to be dead yet
            self._worker.remove(seat.conversation)
            old.asked_away()
        seat.resumed = True
        self._metrics.add("moshi_sessions_resumed_total")
        return seat

    def _has_room(self) -> bool:
        if len(self._seats) + self._coming < self._limits.max_sessions:
            return True
        left = next((seat for seat in self._seats.values() if seat.kept and seat.said_goodbye), None)
        if left is None:
            return False
        self._free(left, let_in=False)
        return True

    async def _wait(self, on_position: Callable[[int], None]) -> None:
        if len(self._waiting) >= self._limits.max_waiting:
            raise BusyError(f"{len(self._waiting)} clients are waiting already; try again later.")
        place = _Waiting(asyncio.get_running_loop().create_future(), on_position)
        self._waiting.append(place)
        on_position(len(self._waiting))
        try:
            await place.turn
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
                self._tell_positions()
            elif place.turn.done() and not place.turn.cancelled():
                self._coming -= 1  # its turn had just come
                self._let_in()
            raise

    def _let_in(self) -> None:
        moved = False
        while self._waiting and self._has_room():
            place = self._waiting.popleft()
            if not place.turn.done():
                self._coming += 1
                place.turn.set_result(None)
                moved = True
        if moved:
            self._tell_positions()

    def _tell_positions(self) -> None:
        for position, place in enumerate(self._waiting, 1):
            place.on_position(position)

    def _free(self, seat: Seat, let_in: bool = True) -> None:
        if seat.expiry is not None:
            seat.expiry.cancel()
            seat.expiry = None
        if self._seats.get(seat.token) is seat:
            del self._seats[seat.token]
        if let_in:
            self._let_in()
