"""Ogg/Opus streams, in any pieces and of any ill will."""

import random
import struct

import numpy as np
import pytest
import sphn
from web_clients import opus_headers

from moshi_mlx.web.ogg import CONTINUED, OggReader, StreamError, checksum, write_page
from moshi_mlx.web.opus import OggDecoder, OggEncoder, PacketDecoder, PacketEncoder, packet_ms

SECONDS = 2
TIME = np.arange(24000 * SECONDS) / 24000
CHIRP = (0.4 * np.sin(2 * np.pi * (200 + 400 * TIME) * TIME)).astype(np.float32)


def published_stream() -> bytes:
    """What the published Python client sends of `CHIRP`."""
    writer = sphn.OpusStreamWriter(24000)
    return b"".join(bytes(writer.append_pcm(CHIRP[at : at + 1920])) for at in range(0, len(CHIRP), 1920))


def test_a_page_ends_with_the_checksum_that_other_writers_give() -> None:
    stream = published_stream()
    end = 28 + stream[27]
    page = stream[:end]
    assert int.from_bytes(page[22:26], "little") == checksum(page[:22] + bytes(4) + page[26:])


@pytest.mark.parametrize("size", [1, 7, 97, 1000, 10**6])
def test_pieces_need_not_end_on_a_page_border(size: int) -> None:
    stream = published_stream()
    decoder = OggDecoder()
    sound = np.concatenate([decoder.feed(stream[at : at + size]) for at in range(0, len(stream), size)])
    whole = sphn.OpusStreamReader(24000).append_bytes(stream)
    assert np.array_equal(sound, whole)


def test_each_packet_is_decoded_when_it_is_there() -> None:
    encoder, decoder = PacketEncoder(), PacketDecoder()
    for at in range(0, len(CHIRP), 1920):
        packets = encoder.feed(CHIRP[at : at + 1920])
        assert sum(packet_ms(packet) for packet in packets) == 80
        assert sum(len(decoder.feed(packet)) for packet in packets) == 1920


def test_what_we_encode_sounds_as_it_did() -> None:
    encoder, reader = OggEncoder(), sphn.OpusStreamReader(24000)
    pages = b"".join(encoder.feed(CHIRP[at : at + 1920]) for at in range(0, len(CHIRP), 1920))
    sound = reader.append_bytes(pages)
    delay = 154  # samples: the encoder's look-ahead
    found = np.corrcoef(sound[delay + 4800 :], CHIRP[4800 : len(CHIRP) - delay])[0, 1]
    assert found > 0.9, f"correlation {found:.3f}"


def test_browsers_recorders_put_two_packets_of_20_ms_on_a_page() -> None:
    packets = [packet for at in range(0, 9600, 1920) for packet in PacketEncoder().feed(CHIRP[at : at + 1920])]
    lacing = bytes([len(packets[0]), len(packets[1])])
    header = struct.pack("<4sBBqIIIB", b"OggS", 0, 0, 0, 7, 2, 0, 2)
    page = header + lacing + packets[0] + packets[1]
    page = page[:22] + struct.pack("<I", checksum(page)) + page[26:]
    decoder = OggDecoder()
    assert len(decoder.feed(opus_headers())) == 0
    assert len(decoder.feed(page)) == 1920


def test_a_packet_may_go_on_over_page_borders() -> None:
    packet = bytes(range(256)) * 2
    first = struct.pack("<4sBBqIIIB", b"OggS", 0, 2, -1, 7, 0, 0, 1) + b"\xff" + packet[:255]
    second = struct.pack("<4sBBqIIIB", b"OggS", 0, CONTINUED, 0, 7, 1, 0, 2) + b"\xff\x02" + packet[255:]
    reader = OggReader()
    found = [p for page in (first, second) for p in reader.feed(page[:22] + _sum(page) + page[26:])]
    assert [p.data for p in found] == [packet]


def _sum(page: bytes) -> bytes:
    return struct.pack("<I", checksum(page[:22] + bytes(4) + page[26:]))


def test_a_second_stream_may_follow_the_first() -> None:
    decoder = OggDecoder()
    assert [len(decoder.feed(published_stream())) for _ in range(2)] == 2 * [len(CHIRP)]


def page(packet: bytes, number: int = 2, serial: int = 7, flags: int = 0) -> bytes:
    return write_page(packet, serial, number, flags)


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "should begin with b'OggS'"),
        (random.Random(1).randbytes(5000), "should begin with b'OggS'"),
        (b"OggS\x07" + bytes(60), "version 7"),
        (opus_headers()[:60] + b"X" + opus_headers()[61:], "damaged"),
        (page(b"hello"), "begin with its first page"),
        (page(b"NotOpus!" + bytes(20), flags=2), "expected an OpusHead"),
        (page(b"OpusHead" + struct.pack("<BBHIhB", 1, 6, 0, 48000, 0, 1), flags=2), "6 channels"),
        (opus_headers() + opus_headers(8), "two Opus streams"),
        (opus_headers() + page(b""), "no bytes"),
        (opus_headers() + page(b"\x03"), "before its frame count"),
        (opus_headers() + page(b"\x03\x3f" + bytes(100)), "longest lasts 120 ms"),
        (opus_headers() + page(b"\x03\x00"), "longest lasts 120 ms"),
        (opus_headers() + page(b"\x01" + bytes(3)), "can't be decoded"),
        (opus_headers() + page(bytes(20000)), "at most 16384"),
        (opus_headers() + page(b"\0\0", serial=9), "send one stream"),
        (opus_headers() + page(b"\0\0", flags=CONTINUED), "on one side of it only"),
    ],
)
def test_a_hostile_stream_is_refused_with_a_reason(hostile: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        OggDecoder().feed(hostile)


def test_an_endless_packet_is_refused_before_it_fills_the_memory() -> None:
    decoder = OggDecoder()
    decoder.feed(opus_headers())
    full = struct.pack("<4sBBqIIIB", b"OggS", 0, 0, -1, 7, 2, 0, 255) + b"\xff" * 255 + bytes(255 * 255)
    with pytest.raises(StreamError, match="longer than"):
        for number in range(3):
            again = full[:5] + bytes([CONTINUED if number else 0]) + full[6:]
            decoder.feed(again[:22] + _sum(again) + again[26:])


def test_random_packets_and_flipped_bytes_raise_nothing_but_stream_errors() -> None:
    chance = random.Random(7)
    stream = published_stream()[:4000]
    refused = 0
    for _ in range(400):
        decoder = OggDecoder()
        hostile = bytearray(stream)
        for _ in range(chance.randrange(1, 4)):
            hostile[chance.randrange(len(hostile))] = chance.randrange(256)
        packets = b"".join(page(chance.randbytes(chance.choice((1, 2, 50, 1275, 3000))), n) for n in range(2, 12))
        for sent in (bytes(hostile), opus_headers() + packets):
            try:
                decoder.feed(sent)
            except StreamError:
                refused += 1
            decoder = OggDecoder()
    assert refused > 400
