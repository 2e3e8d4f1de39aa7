"""`/api/chat`: the protocol of the published servers and clients; a message's first byte is its kind."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

from .connection import Answer, Dialect, Ending, Message
from .desk import Seat
from .opus import OggDecoder, OggEncoder, Sound

HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING = range(7)
_NOTHING: Sound = np.zeros(0, np.float32)


class ChatDialect(Dialect):
    """The published protocol, as its Python servers speak it; they ignore sampling settings, and so does this one."""

    def __init__(self) -> None:
        self._decoder = OggDecoder()
        self._encoder = OggEncoder()

    def hear(self, message: bytes) -> Sound:
        if message[:1] == bytes([AUDIO]):
            return self._decoder.feed(message[1:])
        return _NOTHING  # pings, controls that full duplex has no use for, and kinds not known

    def queued(self, position: int) -> Iterable[Message]:
        # Published clients pass over metadata that they don't know, and begin at the handshake.
        yield bytes([METADATA]) + json.dumps({"type": "queued", "position": position}).encode()

    def ready(self, seat: Seat, model: str) -> Iterable[Message]:
        yield bytes([HANDSHAKE])

    def speak(self, answer: Answer) -> Iterable[Message]:
        if answer.frame.tokens is None:
            return  # the published servers say nothing until the model's delay has passed
        if pages := self._encoder.feed(answer.frame.pcm):
            yield bytes([AUDIO]) + pages
        if answer.frame.text:
            yield bytes([TEXT]) + answer.frame.text.encode()

    def ending(self, ending: Ending) -> Iterable[Message]:
        yield bytes([ERROR]) + ending.text.encode()
