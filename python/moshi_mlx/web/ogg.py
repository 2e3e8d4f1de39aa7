"""Ogg pages (RFC 3533), as far as one Opus stream needs them: a reader for pieces of any size, and a page writer.

The reader is what stands between the network and the Opus library, so it trusts nothing: it keeps at most one page and
one packet, and whatever isn't a page with the right checksum is an error.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ..errors import InputError

CONTINUED, FIRST, LAST = 1, 2, 4
_HEADER = struct.Struct("<4sBBqIIIB")
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class StreamError(InputError):
    """A client's audio isn't the stream that it should be."""


class TooLargeError(StreamError):
    """A client sent more at a time than it may."""


@dataclass(frozen=True)
class Packet:
    """A packet of an Ogg stream; `first` is True for the one that opens a logical stream."""

    data: bytes
    first: bool


def checksum(page: bytes) -> int:
    """CRC-32 of a page whose checksum field is zero: polynomial 0x04c11db7, unreflected, zero at the start (RFC 3533).

    zlib's is the same sum with mirrored bits and inverted ends, and runs in C.
    """
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def write_page(packet: bytes, serial: int, number: int, flags: int = 0, position: int = 0) -> bytes:
    """One page holding one whole packet of less than 65025 bytes."""
    lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
    header = _HEADER.pack(b"OggS", 0, flags, position, serial, number, 0, len(lacing))
    page = header + lacing + packet
    return page[:22] + struct.pack("<I", checksum(page)) + page[26:]


class OggReader:
    """Packets of one Ogg stream whose bytes arrive in pieces that need not end on a page border.

    A new stream may follow the first (`Packet.first`); interleaved ones may not.
    """

    def __init__(self, longest_packet: int = 1 << 16):
        self._longest = longest_packet
        self._bytes = bytearray()
        self._packet = bytearray()
        self._open = False
        self._serial: int | None = None

    def feed(self, piece: bytes) -> list[Packet]:
        """The packets that this piece completed.

        Raises:
            StreamError: the bytes are no Ogg page, or a damaged one, or a packet is longer than any that's allowed.
        """
        self._bytes += piece
        packets: list[Packet] = []
        while (size := self._page_size()) is not None and len(self._bytes) >= size:
            page = bytes(self._bytes[:size])
            del self._bytes[:size]
            packets += self._read(page)
        return packets

    def _page_size(self) -> int | None:
        """Bytes of the page that the buffer begins with, None while its header isn't whole."""
        held = self._bytes
        if not b"OggS".startswith(held[:4]):
            raise StreamError(f"Found {bytes(held[:4])!r} where an Ogg page should begin with b'OggS'.")
        if len(held) > 4 and held[4] != 0:
            raise StreamError(f"Found an Ogg page of version {held[4]}; only version 0 exists.")
        if len(held) < _HEADER.size or len(held) < _HEADER.size + held[26]:
            return None
        return _HEADER.size + held[26] + sum(held[_HEADER.size : _HEADER.size + held[26]])

    def _read(self, page: bytes) -> list[Packet]:
        _, _, flags, _, serial, _, found, segments = _HEADER.unpack_from(page)
        expected = checksum(page[:22] + b"\0\0\0\0" + page[26:])
        if found != expected:
            raise StreamError(f"An Ogg page is damaged: its checksum is {found:08x}, its bytes give {expected:08x}.")
        first = bool(flags & FIRST)
        if first:
            self._serial, self._open = serial, False
        elif self._serial is None:
            raise StreamError("The Ogg stream doesn't begin with its first page; send the header pages first.")
        elif serial != self._serial:
            raise StreamError(f"Found a page of stream {serial:08x} within stream {self._serial:08x}; send one stream.")
        return self._split(page, segments, first, bool(flags & CONTINUED))

    def _split(self, page: bytes, segments: int, first: bool, continued: bool) -> list[Packet]:
        """The packets that end on a page; what begins there and doesn't is kept for the next."""
        if continued != self._open:
            raise StreamError("A packet goes on over an Ogg page border on one side of it only.")
        if not self._open:
            self._packet.clear()
        packets: list[Packet] = []
        at = _HEADER.size + segments
        for size in page[_HEADER.size : at]:
            self._packet += page[at : at + size]
            at += size
            if len(self._packet) > self._longest:
                raise StreamError(f"A packet is longer than {self._longest} bytes, which no Opus packet is.")
            if size < 255:
                packets.append(Packet(bytes(self._packet), first and not packets))
                self._packet.clear()
        self._open = segments > 0 and page[_HEADER.size + segments - 1] == 255
        return packets
