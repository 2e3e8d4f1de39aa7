"""Opus, as clients of the published protocol (Ogg pages) and browsers (bare packets) speak it, at 24 kHz mono.

The codec is libopus through `sphn`, the binding that the published servers and clients use: it decodes straight to
24 kHz, takes 6.4 ms of delay and has wheels of 2 MB for macOS and Linux. It sees nothing that a client sent as it was:
packets are taken out of the client's pages, checked against RFC 6716, and handed over in pages written here.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import sphn  # type: ignore[import-untyped]

from ..config import SAMPLE_RATE
from .ogg import FIRST, OggReader, StreamError, TooLargeError, write_page

Sound = npt.NDArray[np.float32]

LONGEST_PACKET = 1 << 14
_LONGEST_TAGS = 1 << 16
_LONGEST_PIECE_MS = 10_000  # two bytes can stand for 120 ms
_SILK_MS = (10.0, 20.0, 40.0, 60.0)
_HYBRID_MS = (10.0, 20.0)
_CELT_MS = (2.5, 5.0, 10.0, 20.0)
_NOTHING: Sound = np.zeros(0, np.float32)


def packet_ms(packet: bytes) -> float:
    """Duration of an Opus packet in milliseconds, from its first bytes (RFC 6716, section 3).

    Raises:
        StreamError: no Opus packet begins so, or it's longer than 120 ms.
    """
    if not packet:
        raise StreamError("Found an Opus packet of no bytes.")
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = _SILK_MS[config & 3]
    elif config < 16:
        frame = _HYBRID_MS[config & 1]
    else:
        frame = _CELT_MS[config & 3]
    if code == 3 and len(packet) < 2:
        raise StreamError("An Opus packet ends before its frame count.")
    frames = (1, 2, 2)[code] if code < 3 else packet[1] & 63
    if not 0 < frames * frame <= 120:
        raise StreamError(f"An Opus packet claims to last {frames * frame:g} ms; the longest lasts 120 ms.")
    return frames * frame


class PacketDecoder:
    """Bare Opus packets to sound."""

    def __init__(self) -> None:
        self._reader = sphn.OpusStreamReader(SAMPLE_RATE)
        self._number = 1
        head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, SAMPLE_RATE, 0, 0)
        tags = b"OpusTags" + struct.pack("<II", 0, 0)
        self._append(write_page(head, 1, 0, FIRST) + write_page(tags, 1, 1))

    def feed(self, packet: bytes) -> Sound:
        """A packet's sound: float32 [samples] in [-1, 1] at 24 kHz.

        Raises:
            StreamError: these bytes are no Opus packet.
        """
        packet_ms(packet)
        if len(packet) > LONGEST_PACKET:
            raise StreamError(f"Found an Opus packet of {len(packet)} bytes; expected at most {LONGEST_PACKET}.")
        self._number = (self._number + 1) & 0xFFFFFFFF
        return self._append(write_page(packet, 1, self._number))

    def _append(self, page: bytes) -> Sound:
        try:
            return np.asarray(self._reader.append_bytes(page), np.float32).reshape(-1)
        except (ValueError, RuntimeError) as error:
            raise StreamError(f"An Opus packet can't be decoded: {error}.") from error


class OggDecoder:
    """One continuous Ogg/Opus stream, in pieces that need not end on a page border, to sound."""

    def __init__(self) -> None:
        self._ogg = OggReader(_LONGEST_TAGS)
        self._packets: PacketDecoder | None = None
        self._headers = 0

    def feed(self, piece: bytes) -> Sound:
        """The sound that this piece completed: float32 [samples] in [-1, 1] at 24 kHz, often none.

        Raises:
            StreamError: the bytes are no Ogg/Opus stream.
        """
        sounds = []
        ms = 0.0
        begun = False
        for packet in self._ogg.feed(piece):
            if packet.first:
                if begun:  # heads are short, and a decoder is made for each
                    raise StreamError("A message begins two Opus streams; begin the second in another message.")
                begun = True
                self._check_head(packet.data)
                self._packets, self._headers = PacketDecoder(), 1
            elif self._headers == 1:
                self._headers = 2
                if not packet.data.startswith(b"OpusTags"):
                    raise StreamError("The second packet of an Opus stream should be its OpusTags header.")
            elif self._packets is not None:
                ms += packet_ms(packet.data)
                if ms > _LONGEST_PIECE_MS:
                    raise TooLargeError(f"A message holds over {_LONGEST_PIECE_MS / 1e3:g} s of sound; send less.")
                sounds.append(self._packets.feed(packet.data))
        return np.concatenate(sounds) if sounds else _NOTHING

    @staticmethod
    def _check_head(head: bytes) -> None:
        if len(head) < 19 or not head.startswith(b"OpusHead") or head[8] >> 4:
            raise StreamError(f"The stream begins with {head[:8]!r}; expected an OpusHead header of version 1.")
        if head[9] not in (1, 2) or head[18] != 0:
            raise StreamError(f"The stream has {head[9]} channels, mapping {head[18]}; expected mono.")


class OggEncoder:
    """Sound to one continuous Ogg/Opus stream, header pages first."""

    def __init__(self) -> None:
        self._writer = sphn.OpusStreamWriter(SAMPLE_RATE)

    def feed(self, pcm: Sound) -> bytes:
        """The pages of one frame: float32 [1920] in, whole pages out."""
        return bytes(self._writer.append_pcm(pcm))


class PacketEncoder:
    """Sound to bare Opus packets."""

    def __init__(self) -> None:
        self._ogg = OggEncoder()
        self._reader = OggReader()
        self._headers = 2

    def feed(self, pcm: Sound) -> list[bytes]:
        """The packets of one frame: float32 [1920] in, packets of 40 ms out."""
        packets = [packet.data for packet in self._reader.feed(self._ogg.feed(pcm))]
        skipped = min(self._headers, len(packets))
        self._headers -= skipped
        return packets[skipped:]
