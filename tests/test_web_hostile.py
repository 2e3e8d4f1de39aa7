"""Ill will: it ends its own session with a reason, and nobody else notices."""

import asyncio
import json
import os
import random
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from web_clients import PATIENCE, SILENCE, ChatClient, House, RawClient, opus_headers

from moshi_mlx.errors import InputError, StorageError
from moshi_mlx.session import Frame, Timings
from moshi_mlx.web.access import Access, is_local, make_token
from moshi_mlx.web.connection import Answer, Connection, Ending, Outbox
from moshi_mlx.web.ogg import checksum, write_page
from moshi_mlx.web.pages import Pages
from moshi_mlx.web.stream import StreamDialect
from moshi_mlx.web.tls import load_context, own_certificate

CHANCE = random.Random(3)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    yield house
    house.worker.stop()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x01" + CHANCE.randbytes(3000), id="random bytes"),
        pytest.param(b"\x01OggS" + CHANCE.randbytes(3000), id="a page's first letters, then random bytes"),
        pytest.param(
            b"\x01" + opus_headers() + write_page(CHANCE.randbytes(900), 7, 2)[:-1] + b"?", id="a broken page"
        ),
        pytest.param(
            b"\x01" + opus_headers() + write_page(b"\x03\xff" + CHANCE.randbytes(900), 7, 2), id="a bad packet"
        ),
        pytest.param(b"\x01" + bytes(1 << 20), id="1 MB"),
        pytest.param(bytes([9]) + bytes(1 << 20), id="1 MB of a kind not known"),
    ],
)
def test_a_hostile_chat_message_ends_that_session_with_a_reason(house: House, message: bytes) -> None:
    async def talk() -> None:
        async with house.open() as address, address.stream() as bystander:
            await bystander.until("ready")
            await bystander.converse(3)
            async with address.chat() as client:
                await client.until(0)
                await client.socket.send_bytes(message)
                code = await client.until_closed()
                assert client.error and code in (1008, 1009), (client.error, code)
            await address.until("moshi_sessions", 1)
            assert [step["step"] for step in await bystander.converse(3)] == [3, 4, 5]
            assert bystander.events[-1]["type"] != "error"
            async with address.chat() as next_client:  # and the place is free again
                await next_client.until(0)
                await say_until_answered(next_client)

    asyncio.run(talk())


async def say_until_answered(client: ChatClient) -> None:
    for _ in range(4):
        await client.say()
    await client.until(1)


@pytest.mark.parametrize(
    ("query", "message", "words"),
    [
        ({}, bytes(3), "whole samples"),
        ({"format": "f32"}, bytes(1 << 20), "too large"),
        ({"format": "f32"}, struct.pack("<2f", 0.0, float("nan")), "NaN"),
        ({"format": "opus"}, bytes([3, 63]) + bytes(500), "120 ms"),
        ({}, "no JSON", "JSON"),
        ({}, "[" * 100000, "JSON"),
        ({}, '{"no": "type"}', "JSON"),
    ],
)
def test_a_hostile_stream_message_ends_that_session_with_a_reason(
    house: House, query: dict[str, str], message: bytes | str, words: str
) -> None:
    async def talk() -> None:
        async with house.open() as address, address.stream(**query) as client:
            await client.until("ready")
            send = client.socket.send_str(message) if isinstance(message, str) else client.socket.send_bytes(message)
            await send
            error = await client.until("error")
            assert error["code"] == "bad-stream" and words in error["message"]
            assert await client.next() is None
            await address.until("moshi_sessions", 0)
            assert await address.metric("moshi_client_errors_total") == 1

    asyncio.run(talk())


@pytest.mark.parametrize("id", ['"\\ud800"', "1e999", "NaN", "1" + 400 * "0"])
def test_what_json_cannot_say_is_no_failure_of_the_server(house: House, id: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    async def talk() -> None:
        async with house.open() as address, address.stream() as client:
            await client.until("ready")
            await client.socket.send_str(f'{{"type": "ping", "id": {id}}}')
            pong = json.loads((await client.socket.receive()).data, parse_constant=refuse)
            assert pong["type"] == "pong"
            assert await address.metric("moshi_server_errors_total") == 0

    asyncio.run(talk())


def test_a_message_that_swells_to_hours_of_sound_is_refused_before_it_is_decoded(house: House) -> None:
    packets = bytes(255 * [2]) + 255 * b"\x0b\x06"  # each 120 ms in two bytes
    header = struct.pack("<4sBBqIII", b"OggS", 0, 0, 0, 7, 2, 0) + b"\xff"
    page = header + packets
    page = page[:22] + struct.pack("<I", checksum(page)) + page[26:]

    async def talk() -> None:
        async with house.open() as address, address.chat() as client:
            await client.until(0)
            await client.socket.send_bytes(b"\x01" + opus_headers() + page)  # 30 s in 800 bytes
            assert await client.until_closed() == 1009
            assert "10 s of sound" in client.error

    asyncio.run(talk())


def test_more_sound_than_anyone_can_say_is_refused_however_few_its_bytes(house: House) -> None:
    async def talk() -> None:
        async with house.open(burst_seconds=1.0) as address, address.stream(format="opus") as client:
            await client.until("ready")
            for _ in range(100):
                await client.socket.send_bytes(b"\x0b\x06")
            assert "Too much sound" in (await client.until("error"))["message"]

    asyncio.run(talk())


@pytest.mark.parametrize("opcode", [pytest.param(9, id="pings"), pytest.param(10, id="pongs")])
def test_a_flood_of_control_frames_ends_its_connection(house: House, opcode: int) -> None:
    async def talk() -> None:
        async with house.open(messages_per_second=50.0, burst_seconds=2.0) as address:
            raw = RawClient(address.port, "/api/stream")
            await address.until("moshi_sessions", 1)
            for _ in range(200):
                raw.send(opcode, b"")
            assert b"Too many messages" in await raw.until_closed()
            await address.until("moshi_sessions", 0)

    asyncio.run(talk())


def test_a_message_of_fragments_without_end_is_broken_off(house: House) -> None:
    fragment = b"\x00\x80\0\0\0\0"  # of no bytes, and not the last

    def flood(raw: RawClient) -> None:
        raw.send(2, b"", first=0)
        for _ in range(100):
            raw.socket.sendall(40_000 * fragment)

    async def talk() -> None:
        async with house.open(bytes_per_second=50_000.0) as address, address.stream() as bystander:
            await bystander.until("ready")
            raw = RawClient(address.port, "/api/stream")
            await address.until("moshi_sessions", 2)
            with pytest.raises(ConnectionError):
                await asyncio.get_running_loop().run_in_executor(None, flood, raw)
            raw.close()
            await address.until("moshi_sessions", 1)
            assert await address.metric("moshi_client_errors_total") == 1
            await bystander.converse(2)

    asyncio.run(talk())


def test_pings_are_answered(house: House) -> None:
    async def talk() -> None:
        async with house.open() as address:
            raw = RawClient(address.port, "/api/chat")
            raw.send(9, b"are you there")
            raw.send(8, b"\x03\xe8")
            assert b"\x8a\x0dare you there" in await raw.until_closed()

    asyncio.run(talk())


class Gate:
    """A socket whose every message is sent when the gate opens."""

    closed, close_code = False, None

    def __init__(self) -> None:
        self.open = asyncio.Event()

    def __aiter__(self) -> "Gate":
        return self

    async def __anext__(self) -> object:
        await asyncio.Event().wait()
        raise StopAsyncIteration

    async def send_str(self, message: str) -> None:
        await self.open.wait()

    async def close(self, **reason: object) -> None:
        self.closed = True


@pytest.mark.parametrize("turns", range(8))
def test_a_connection_that_ends_as_a_message_is_sent_frees_its_seat(house: House, turns: int) -> None:
    async def talk() -> None:
        async with house.open() as address:
            gate = Gate()
            connection = Connection(address.server, gate, StreamDialect("s16"))  # type: ignore[arg-type]
            running = asyncio.ensure_future(connection.run())
            await address.until("moshi_sessions", 1)
            connection.end(Ending("closing", "Over."))
            for _ in range(turns):  # turns of the event loop between the end and what was sent at last
                await asyncio.sleep(0)
            gate.open.set()
            await asyncio.wait_for(running, 10)
            await address.until("moshi_sessions", 0)

    asyncio.run(talk())


def test_who_sends_far_faster_than_speech_is_shown_the_door(house: House) -> None:
    async def talk() -> None:
        async with house.open(messages_per_second=50.0, burst_seconds=2.0) as address, address.stream() as client:
            await client.until("ready")
            for _ in range(200):
                await client.socket.send_bytes(b"\0\0")
            assert "Too many messages" in (await client.until("error"))["message"]

    asyncio.run(talk())


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda raw: raw.send(2, bytes(100), masked=False), id="unmasked frame"),
        pytest.param(lambda raw: raw.send(2, bytes(100), first=0xF0), id="reserved bits"),
        pytest.param(lambda raw: raw.send(0xB, b""), id="reserved opcode"),
        pytest.param(lambda raw: raw.send(8, b"\x03"), id="close frame of one byte"),
        pytest.param(lambda raw: raw.send(9, bytes(200)), id="long ping"),
        pytest.param(lambda raw: raw.socket.sendall(b"\x82\xff" + b"\xff" * 8 + bytes(4)), id="a frame of 2^64 bytes"),
        pytest.param(lambda raw: raw.send(1, b"\xff\xfe"), id="text that isn't UTF-8"),
        pytest.param(lambda raw: raw.socket.sendall(b"\x82\xfe\x10"), id="truncated frame"),
    ],
)
def test_broken_websocket_frames_end_that_connection_only(house: House, act: object) -> None:
    async def talk() -> None:
        # Truncated frames are ended by the heartbeat: this client doesn't answer it.
        async with house.open(heartbeat_seconds=0.5) as address, address.stream() as bystander:
            await bystander.until("ready")
            conversing = asyncio.ensure_future(bystander.converse(10**6))
            raw = RawClient(address.port, "/api/chat")
            await address.until("moshi_sessions", 2)
            act(raw)  # type: ignore[operator]
            received = await raw.until_closed()
            assert received.startswith(b"HTTP/1.1 101")
            await address.until("moshi_sessions", 1)
            assert not conversing.done()
            conversing.cancel()

    asyncio.run(talk())


def test_a_connection_that_is_open_on_one_side_only_is_noticed(house: House) -> None:
    async def talk() -> None:
        async with house.open(heartbeat_seconds=0.4) as address:
            raw = RawClient(address.port, "/api/chat")
            await address.until("moshi_sessions", 1)
            await address.until("moshi_sessions", 0)  # its client never answers a ping
            raw.close()

    asyncio.run(talk())


def test_a_client_in_the_queue_that_answers_nothing_is_noticed(house: House) -> None:
    async def talk() -> None:
        async with house.open(heartbeat_seconds=0.4, max_sessions=1) as address, address.stream() as client:
            await client.until("ready")
            conversing = asyncio.ensure_future(client.converse(10**6))
            raw = RawClient(address.port, "/api/chat")
            await address.until("moshi_waiting", 1)
            await address.until("moshi_waiting", 0)  # its client never answers a ping
            assert not conversing.done()
            conversing.cancel()
            raw.close()

    asyncio.run(talk())


def test_words_never_take_the_place_of_sound_in_the_outbox() -> None:
    outbox = Outbox(frames=25)
    answer = Answer(Frame(SILENCE, "", None, Timings(0.0), 0), 0, 0.0, 0, 0)

    async def talk() -> None:
        for _ in range(25):
            assert outbox.frame(answer) == 0
        for _ in range(1030):
            outbox.say(["pong"])
        assert [await outbox.next() for _ in range(25)] == 25 * [answer]
        assert len(outbox.rest()) == 1000
        assert outbox.frame(answer) == 0
        assert await outbox.next() is answer

    asyncio.run(talk())


def test_a_client_that_says_nothing_loses_its_place(house: House) -> None:
    async def talk() -> None:
        async with house.open(idle_seconds=0.3, max_sessions=1) as address, address.stream() as client:
            await client.until("ready")
            assert (await client.until("error"))["code"] == "idle"
            await address.until("moshi_sessions", 0)
            assert await address.metric("moshi_sessions_kept") == 0

    asyncio.run(talk())


def test_a_conversation_has_a_longest_time(house: House) -> None:
    async def talk() -> None:
        async with house.open(session_seconds=0.3) as address, address.stream() as client:
            await client.until("ready")
            while (event := await client.next())["type"] != "error":  # type: ignore[index]
                await client.say()
            assert event is not None and event["code"] == "time-over"

    asyncio.run(talk())


def test_a_conversation_gets_no_longer_by_coming_back_to_it(house: House) -> None:
    async def talk() -> None:
        async with house.open(session_seconds=2.0) as address:
            token, began = None, time.monotonic()
            while time.monotonic() - began < PATIENCE:
                async with address.stream(**({"session": token} if token else {})) as client:
                    event = await client.next()
                    assert event is not None and event["type"] == "ready"
                    if token is not None and event["session"] != token:
                        return  # the first one's time was over
                    token = event["session"]
                    left = time.monotonic() + 0.6
                    while time.monotonic() < left:
                        await client.say()
                        await asyncio.sleep(0.08)
            raise AssertionError("it never ends")

    asyncio.run(talk())


def test_headers_that_dribble_in_are_not_waited_for(house: House) -> None:
    async def talk() -> None:
        async with house.open(header_seconds=0.5) as address:
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
            began = time.monotonic()
            try:
                while time.monotonic() - began < 30:
                    writer.write(b"G" if time.monotonic() == began else b"E")
                    await writer.drain()
                    if reader.at_eof():
                        break
                    await asyncio.sleep(0.05)
            except ConnectionError:
                pass
            assert time.monotonic() - began < 30, "the connection is still open"
            writer.close()
            assert (await address.get("/health"))[0] == 200

    asyncio.run(talk())


def test_connections_are_bounded(house: House) -> None:
    async def talk() -> None:
        async with house.open(max_connections=5) as address:
            held = [await asyncio.open_connection("127.0.0.1", address.port) for _ in range(5)]
            await asyncio.sleep(0.1)
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
            assert await reader.read() == b""
            for _, each in (*held, (reader, writer)):
                each.close()
                await each.wait_closed()
            await asyncio.sleep(0.1)
            assert (await address.get("/health"))[0] == 200

    asyncio.run(talk())


def test_a_failure_of_the_model_ends_that_session_and_tells_no_details(house: House) -> None:
    class Broken:
        def step(self, pcm: object) -> object:
            raise RuntimeError("secret details")

        def note_dropped(self, frames: int) -> None: ...

    async def talk() -> None:
        made = iter((Broken(), *(house.make_speaker() for _ in range(1))))
        async with house.open(speaker=lambda: next(made)) as address, address.stream() as client:
            await client.until("ready")
            await client.say()
            error = await client.until("error")
            assert error["code"] == "failed" and "secret" not in error["message"]
            assert await address.metric("moshi_server_errors_total") == 1
            assert (await address.get("/health"))[0] == 200

    asyncio.run(talk())


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:1", "null", "file://", "http://[", "http://x@y"]
)
def test_pages_of_other_sites_are_refused(house: House, origin: str) -> None:
    async def talk() -> None:
        async with house.open() as address:
            for path in ("/api/chat", "/api/stream", "/api/info", "/metrics"):
                assert (await address.get(path, Origin=origin))[0] == 403
            raw = RawClient(
                address.port, "/api/chat", f"Upgrade: websocket\r\nConnection: Upgrade\r\nOrigin: {origin}\r\n"
            )
            answer = await asyncio.get_running_loop().run_in_executor(None, raw.socket.recv, 4096)
            assert answer.startswith(b"HTTP/1.1 403")
            raw.close()
            assert await address.metric("moshi_connections_total") == 0

    asyncio.run(talk())


def test_pages_of_this_server_and_allowed_ones_are_let_in(house: House) -> None:
    async def talk() -> None:
        async with house.open(Access(origins=frozenset({"http://localhost:5173"}))) as address:
            for origin in (address.url, "http://localhost:5173"):
                assert (await address.get("/api/info", Origin=origin))[0] == 200

    asyncio.run(talk())


def test_a_name_in_no_known_letters_is_refused_like_any_other(house: House) -> None:
    async def talk() -> None:
        async with house.open() as address:
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 403")
            writer.close()

    asyncio.run(talk())


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Authorization: Bearer \xff", b"401"),
        ("Sec-WebSocket-Key: \xff", b"400"),
        ("Sec-WebSocket-Version: \xff", b"400"),
        ("Upgrade: \xff", b"400"),
    ],
)
def test_a_header_in_no_known_letters_is_refused_without_a_traceback(
    house: House, header: str, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    token = make_token()
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Authorization": f"Bearer {token}",
    }
    name, value = header.split(": ")
    lines = [f"{name}: {value}" for name, value in {**headers, name: value}.items()]

    async def talk() -> None:
        async with house.open(Access(token)) as address:
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
            writer.write("\r\n".join(["GET /api/chat HTTP/1.1", "Host: localhost", *lines, "\r\n"]).encode("latin1"))
            assert (await reader.readline()).split()[1] == status
            writer.close()

    asyncio.run(talk())
    assert not caplog.records, caplog.text


def test_what_is_no_http_leaves_no_traceback_in_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async def talk() -> None:
        async with house.open() as address:
            for request in (CHANCE.randbytes(500), b"GET / HTTP/1.1\r\nX: " + bytes(20000)):
                reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
                writer.write(request)
                assert (await reader.read()).startswith(b"HTTP/1.0 400")
                writer.close()

    asyncio.run(talk())
    assert not caplog.records, caplog.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.2"])
def test_a_name_made_to_point_here_is_refused(house: House, host: str) -> None:
    async def talk() -> None:
        async with house.open() as address:
            assert (await address.get("/api/info", Host=f"{host}:{address.port}"))[0] == 403
            assert (await address.get("/", Host=host))[0] == 403

    asyncio.run(talk())


def test_a_server_for_others_asks_for_its_token(house: House) -> None:
    token = make_token()

    async def talk() -> None:
        async with house.open(Access(token)) as address:
            for path in ("/api/chat", "/api/stream", "/api/info", "/metrics"):
                assert (await address.get(path))[0] == 401
                assert (await address.get(f"{path}?token={token[:-1]}"))[0] == 401
            assert (await address.get(f"/api/info?token={token}"))[0] == 200
            assert (await address.get("/metrics", Authorization=f"Bearer {token}"))[0] == 200
            assert (await address.get("/health"))[0] == 200
            assert (await address.get("/"))[0] == 200  # the page is no secret, and asks for the token itself
            async with address.stream(token=token) as client:
                await client.until("ready")

    asyncio.run(talk())


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/app.py",
        "/..%2fapp.py",
        "/..%5capp.py",
        "//etc/passwd",
        "/static/../../app.py",
        "/index.html/../../app.py",
        "/index.html%00.js",
        "/.hidden",
    ],
)
def test_no_path_leads_out_of_the_static_folder(house: House, path: str) -> None:
    async def talk() -> None:
        async with house.open() as address:
            raw = RawClient(address.port, path, "Connection: close\r\n")
            status = (await raw.until_closed()).split(b"\r\n")[0]
            assert status.split()[1] in (b"404", b"400"), status

    asyncio.run(talk())


def test_links_out_of_the_static_folder_are_not_followed(house: House, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("page")
    (folder / ".env").write_text("secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    assert set(Pages(folder)._files) == {"", "index.html"}
    with pytest.raises(InputError, match=r"no index\.html"):
        Pages(tmp_path)


def test_responses_carry_what_keeps_a_browser_safe(house: House) -> None:
    async def talk() -> None:
        async with house.open() as address, address.http.get(address.url + "/") as answer:
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"

    asyncio.run(talk())


def test_another_page_has_rules_of_its_own(house: House, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<script>inline</script>")

    async def talk() -> None:
        async with house.open(pages=Pages(tmp_path)) as address, address.http.get(address.url + "/") as answer:
            assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"

    asyncio.run(talk())


def test_nothing_listens_beyond_this_machine_unless_told(house: House) -> None:
    async def talk() -> list[str]:
        async with house.open() as address:
            return [each.getsockname()[0] for each in address.server._listening[0].sockets]  # type: ignore[attr-defined]

    assert set(asyncio.run(talk())) <= {"127.0.0.1", "::1"}


def test_the_own_certificate_lets_a_client_that_trusts_it_in(house: House, tmp_path: Path) -> None:
    folder = own_certificate(tmp_path / "tls", "moshi.test")
    assert (folder / "key.pem").stat().st_mode & 0o077 == 0, "others can read the key"
    made = (folder / "cert.pem").read_bytes()
    assert (own_certificate(folder, "moshi.test") / "cert.pem").read_bytes() == made, "made anew without need"
    assert (own_certificate(folder, "other.test") / "cert.pem").read_bytes() != made, "not made for the new name"
    trusting = ssl.create_default_context(cafile=str(folder / "cert.pem"))

    async def talk() -> None:
        async with house.open() as address:
            port = await address.server.start("localhost", 0, load_context(folder))
            async with address.http.get(f"https://localhost:{port}/health", ssl=trusting) as answer:
                assert answer.status == 200

    asyncio.run(talk())


def test_a_folder_without_a_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cert\.pem"):
        load_context(tmp_path)
    (tmp_path / "cert.pem").write_text("no certificate")
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(InputError, match="can't be used"):
        load_context(tmp_path)


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder into which this process may not look."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    root = os.geteuid() == 0  # may look everywhere
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_a_folder_without_permission_is_named(closed_folder: Path) -> None:
    with pytest.raises(InputError, match="Permission denied; --ssl"):
        load_context(closed_folder)
    with pytest.raises(InputError, match=r"\(Permission denied\); give .* --static"):
        Pages(closed_folder)


def test_an_own_certificate_that_cant_be_read_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    folder = own_certificate(tmp_path, "moshi.test")
    made = (folder / "cert.pem").read_text()
    monkeypatch.setattr(Path, "read_bytes", fail)
    assert own_certificate(folder, "moshi.test") == folder
    assert (folder / "cert.pem").read_text() != made
    with pytest.raises(StorageError, match="--ssl"):
        own_certificate(tmp_path / (300 * "x"), "moshi.test")


def test_the_own_certificate_is_for_names_in_any_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "no..name")
    folder = own_certificate(tmp_path, "münchen.local")
    made = (folder / "cert.pem").read_bytes()
    names = x509.load_pem_x509_certificate(made).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "xn--mnchen-3ya.local" in names.get_values_for_type(x509.DNSName)
    assert (own_certificate(folder, "münchen.local") / "cert.pem").read_bytes() == made, "made anew without need"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", "")),
    ],
)
def test_which_hosts_are_this_machine(host: str, local: bool) -> None:
    assert is_local(host) is local


def test_silence_is_no_ill_will(house: House) -> None:
    async def talk() -> None:
        async with house.open() as address, address.stream(format="f32") as client:
            await client.until("ready")
            for size in (0, 1, 7, 1919, 5000):
                await client.socket.send_bytes(SILENCE.repeat(3)[:size].tobytes())
            assert (await client.until("step"))["heard"] == 1920

    asyncio.run(talk())
