"""The server as its clients meet it: both protocols, the queue, lost connections, slow readers."""

import asyncio
import json
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from aiohttp import WSMsgType
from web_clients import SILENCE, House, RawClient

from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.session import Frame, Timings
from moshi_mlx.web.metrics import Metrics
from moshi_mlx.web.worker import Inbox

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (40, FRAME_SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    yield house
    house.worker.stop()


def test_a_published_client_is_greeted_heard_and_answered(house: House) -> None:
    async def talk() -> None:
        async with house.open() as address, address.chat() as client:
            first = await client.socket.receive()
            assert first.data == b"\x00"
            for frame in NOISE[:12]:
                await client.say(frame)
            while client.samples < 10 * FRAME_SIZE:
                assert await client.next() is not None
            assert client.peak > 0.01, "the sound that came back is silence"
            assert client.text
            assert set(client.kinds) <= {1, 2}

    asyncio.run(talk())


def test_kinds_that_mean_nothing_here_are_ignored(house: House) -> None:
    async def talk() -> None:
        async with house.open() as address, address.chat() as client:
            await client.until(0)
            for message in (b"", b"\x06", b"\x03\x00", b"\x03\x01", b"\x04{}", b"\x04\xff{", b"\x07\x01red", b"\xc8?"):
                await client.socket.send_bytes(message)
            await client.socket.send_str("a text message, which the protocol doesn't have")
            for _ in range(4):
                await client.say()
            await client.until(1)

    asyncio.run(talk())


@pytest.mark.parametrize("format", ["s16", "f32", "opus"])
def test_the_raw_stream_answers_each_frame(house: House, format: str) -> None:
    from moshi_mlx.web.opus import PacketDecoder, PacketEncoder

    async def talk() -> None:
        async with house.open() as address, address.stream(format=format) as client:
            ready = await client.until("ready")
            assert (ready["sample_rate"], ready["frame_size"], ready["format"]) == (24000, 1920, format)
            encoder, decoder = PacketEncoder(), PacketDecoder()
            for index, frame in enumerate(NOISE[:8]):
                if format == "opus":
                    for packet in encoder.feed(frame):
                        await client.socket.send_bytes(packet)
                else:
                    sound = frame if format == "f32" else np.round(frame * 32767)
                    await client.socket.send_bytes(sound.astype("<f4" if format == "f32" else "<i2").tobytes())
                step = await client.until("step")
                assert (step["step"], step["heard"]) == (index, (index + 1) * FRAME_SIZE)
                assert step["step_ms"] > 0 and step["dropped_in"] == step["dropped_out"] == 0
            await client.socket.send_str('{"type": "ping", "id": "mine"}')
            assert (await client.until("pong"))["id"] == "mine"
            if format == "opus":
                pcm = np.concatenate([decoder.feed(packet) for packet in client.sounds])
            else:
                pcm = np.frombuffer(b"".join(client.sounds), "<f4" if format == "f32" else "<i2")
            assert len(pcm) == 8 * FRAME_SIZE
            assert np.abs(pcm[: FRAME_SIZE // 2]).max() < 1e-3, "there's sound before the model's delay"
            assert np.abs(pcm).max() > (0.01 if format != "s16" else 300)
            texts = [event for event in client.events if event["type"] == "text"]
            assert texts and all(0.08 <= event["time"] <= 0.56 and event["text"] for event in texts)
            states = [event["state"] for event in client.events if event["type"] == "state"]
            assert states == ["speaking"]

    asyncio.run(talk())


def test_the_answer_is_the_sessions_own_sample_for_sample(house: House) -> None:
    def alone() -> np.ndarray:
        session = house.model.session(seed=77)
        return np.concatenate([session.step(frame).pcm for frame in NOISE[:10]])

    async def talk() -> np.ndarray:
        speaker = partial(house.model.session, seed=77)
        async with house.open(speaker=speaker) as address, address.stream(format="f32") as client:
            await client.until("ready")
            for frame in NOISE[:10]:
                await client.socket.send_bytes(frame.tobytes())
                await client.until("step")
            await client.socket.send_str('{"type": "ping"}')
            await client.until("pong")
            return np.frombuffer(b"".join(client.sounds), "<f4")

    assert np.array_equal(asyncio.run(talk()), house.worker.call(alone).result())


def test_two_conversations_at_once_do_not_hear_each_other(house: House) -> None:
    async def talk(both: bool) -> np.ndarray:
        speaker = partial(house.model.session, seed=5)
        async with house.open(speaker=speaker) as address, address.stream() as first, address.stream() as second:
            await first.until("ready")
            await second.until("ready")
            for frame in NOISE[:10]:
                await first.say(SILENCE)
                if both:
                    await second.say(frame)
                    await second.until("step")
                await first.until("step")
            await first.socket.send_str('{"type": "ping"}')
            await first.until("pong")
            if both:
                assert second.sounds != first.sounds, "both heard the same"
            return np.frombuffer(b"".join(first.sounds), "<i2").astype(int)

    alone, beside = asyncio.run(talk(both=False)), asyncio.run(talk(both=True))
    assert len(alone) == len(beside) == 10 * FRAME_SIZE
    # Stepped together, they are rounded differently in the last bit.
    assert np.abs(alone - beside).max() <= 1


def test_who_waits_is_told_its_place_and_gets_its_turn_in_order(house: House) -> None:
    async def talk() -> None:
        async with house.open(max_sessions=1, keep_seconds=0) as address, address.stream() as first:
            await first.until("ready")
            async with address.stream() as second, address.chat() as third, address.stream() as fourth:
                assert (await second.next()) == {"type": "queued", "position": 1}
                await third.until(4)
                assert (await fourth.next())["position"] == 3  # type: ignore[index]
                await first.socket.close()
                assert (await second.next())["type"] == "ready"  # type: ignore[index]
                assert (await fourth.next()) == {"type": "queued", "position": 2}
                await second.socket.close()
                await third.until(0)
                assert third.kinds == [4, 4, 0]
                assert (await fourth.next()) == {"type": "queued", "position": 1}

    asyncio.run(talk())


def test_who_leaves_the_queue_makes_room_in_it(house: House) -> None:
    async def talk() -> None:
        async with house.open(max_sessions=1, max_waiting=2) as address, address.stream() as first:
            await first.until("ready")
            async with address.stream() as second, address.stream() as third:
                await second.until("queued")
                await third.until("queued")
                async with address.stream() as fourth:
                    error = await fourth.until("error")
                    assert error["code"] == "busy"
                    assert await fourth.next() is None and fourth.socket.close_code == 1013
                await second.socket.close()
                assert (await third.until("queued"))["position"] == 1
                async with address.stream() as fifth:
                    assert (await fifth.until("queued"))["position"] == 2

    asyncio.run(talk())


def test_a_lost_connection_resumes_its_conversation(house: House) -> None:
    async def talk(lose: bool) -> bytes:
        async with house.open(speaker=lambda: house.model.session(seed=9)) as address:
            async with address.stream() as client:
                token = (await client.until("ready"))["session"]
                await client.converse(6)
                if not lose:
                    await client.converse(6)
                    await client.socket.send_str('{"type": "ping"}')
                    await client.until("pong")
                    return b"".join(client.sounds)
                await client.socket.send_str('{"type": "ping"}')
                await client.until("pong")
                client.socket._response.connection.transport.abort()  # type: ignore[union-attr]
            await address.until("moshi_sessions_kept", 1)
            async with address.stream(session=token) as again:
                ready = await again.until("ready")
                assert ready["resumed"] and ready["session"] == token and ready["time"] == pytest.approx(0.48)
                steps = await again.converse(6)
                assert [step["step"] for step in steps] == list(range(6, 12))
                assert steps[0]["heard"] == FRAME_SIZE, "a connection's samples are counted from its beginning"
                await again.socket.send_str('{"type": "ping"}')
                await again.until("pong")
                return b"".join(client.sounds + again.sounds)

    assert asyncio.run(talk(lose=True)) == asyncio.run(talk(lose=False))


def test_a_client_that_comes_back_before_its_old_connection_is_known_dead_takes_it_over(house: House) -> None:
    async def talk() -> None:
        async with house.open(max_sessions=1) as address, address.stream() as old:
            token = (await old.until("ready"))["session"]
            await old.converse(3)
            async with address.stream(session=token) as new:
                assert (await new.until("ready"))["resumed"]
                assert (await old.until("error"))["code"] == "replaced"
                assert (await new.converse(2))[-1]["step"] == 4
                assert await address.metric("moshi_sessions") == 1

    asyncio.run(talk())


def test_a_kept_conversation_is_freed_after_its_time(house: House) -> None:
    async def talk() -> None:
        async with house.open(keep_seconds=0.2) as address:
            async with address.stream() as client:
                token = (await client.until("ready"))["session"]
            await address.until("moshi_sessions_kept", 0)
            async with address.stream(session=token) as again:
                ready = await again.until("ready")
                assert not ready["resumed"] and ready["session"] != token

    asyncio.run(talk())


def test_who_says_goodbye_leaves_its_seat_to_those_who_wait(house: House) -> None:
    async def talk() -> None:
        async with house.open(max_sessions=1, keep_seconds=3600) as address:
            async with address.stream() as first:
                await first.until("ready")
            async with address.stream() as second:  # nobody waited when the first left: its conversation is still kept
                assert not (await second.until("ready"))["resumed"]
            async with address.chat() as third:
                await third.until(0)
            await address.until("moshi_sessions", 0)
            assert await address.metric("moshi_sessions_kept") == 0, "published clients can't come back"

    asyncio.run(talk())


def test_the_end_and_restart_messages(house: House) -> None:
    async def talk() -> None:
        async with house.open() as address, address.stream() as client:
            await client.until("ready")
            await client.converse(5)
            await client.socket.send_str('{"type": "restart"}')
            await client.until("restarted")
            assert (await client.converse(1))[0]["step"] == 0
            await client.socket.send_str('{"type": "end"}')
            assert await client.next() is None
            await address.until("moshi_sessions", 0)
            assert await address.metric("moshi_sessions_kept") == 0

    asyncio.run(talk())


class Slow:
    """A speaker that takes its time: what a machine too slow for its conversations is like."""

    def __init__(self, seconds: float):
        self.seconds, self.steps, self.dropped = seconds, 0, 0

    def step(self, pcm: np.ndarray) -> Frame:
        time.sleep(self.seconds)
        self.steps += 1
        return Frame(pcm, "", np.zeros(9, np.int32), Timings(self.seconds * 1e3), self.steps - 1)

    def note_dropped(self, frames: int) -> None:
        self.dropped += frames

    def reset(self, seed: int | None = None) -> None:
        self.steps = 0


def test_stale_sound_is_dropped_and_counted(house: House) -> None:
    speaker = Slow(0.12)

    async def talk() -> None:
        async with house.open(speaker=lambda: speaker, max_lag=0.2) as address, address.stream() as client:
            await client.until("ready")
            for _ in range(25):
                await client.say()
                await asyncio.sleep(0.08)
            while (step := await client.until("step"))["heard"] < 24 * FRAME_SIZE:
                pass
            assert step["dropped_in"] > 0
            assert step["dropped_in"] + len(client.sounds) + 1 == step["heard"] // FRAME_SIZE
            assert await address.metric("moshi_frames_in_dropped_total") == step["dropped_in"] == speaker.dropped

    asyncio.run(talk())


def test_a_burst_is_answered_whole() -> None:
    inbox = Inbox(max_lag=0.4)
    for _ in range(50):
        inbox.put(SILENCE, now=100.0)
    now = 100.0
    for _ in range(50):  # by a model that just keeps up
        assert inbox.take(now) is not None
        now += 0.079
    assert inbox.dropped == 0


def test_an_inbox_is_bounded_whatever_comes() -> None:
    inbox = Inbox(max_lag=0.4, max_frames=125)
    for _ in range(1000):
        inbox.put(SILENCE, now=100.0)
    assert len(inbox) == 125 and inbox.dropped == 875


def test_a_client_that_does_not_read_costs_only_itself(house: House) -> None:
    async def talk() -> None:
        async with house.open(stalled_seconds=1.0, outgoing_frames=5) as address:
            deaf = RawClient(address.port, "/api/stream?format=f32")
            async with address.stream() as other:
                await other.until("ready")
                await address.until("moshi_sessions", 2)
                for _ in range(40):
                    deaf.send(2, SILENCE.tobytes())
                    step = (await other.converse(1))[0]
                assert step["dropped_in"] == step["dropped_out"] == 0
                assert await address.metric("moshi_frames_out_dropped_total") > 0
                await address.until("moshi_sessions", 1)
                assert (await other.converse(1))[0]["step"] == 40
            deaf.close()

    asyncio.run(talk())


def test_health_info_and_metrics(house: House) -> None:
    async def talk() -> None:
        async with house.open() as address:
            async with address.stream() as client:
                await client.until("ready")
                await client.converse(5)
                status, text = await address.get("/health")
                assert status == 200 and json.loads(text)["sessions"] == 1
                assert json.loads((await address.get("/api/info"))[1])["model"] == "untrained"
                assert await address.metric("moshi_step_seconds_count") == 5
                assert await address.metric("moshi_sessions") == 1
                assert await address.metric("moshi_frames_together_total") == house.worker.together
            metrics = (await address.get("/metrics"))[1]
            for line in metrics.splitlines():
                assert line.startswith("#") or float(line.rsplit(" ", 1)[1]) >= 0
            assert metrics.endswith("\n") and 'moshi_step_seconds_bucket{le="+Inf"} 5' in metrics

    asyncio.run(talk())


def test_metrics_count_exactly_however_long_the_server_runs() -> None:
    metrics = Metrics()
    metrics.gauge("moshi_frames", "Frames.", lambda: 123_456_789, kind="counter")
    assert "\nmoshi_frames 123456789\n" in metrics.text()


def test_restarts_asked_for_at_once_are_done_once(house: House) -> None:
    restarts = []

    class Speaker(Slow):
        def reset(self, seed: int | None = None) -> None:
            restarts.append(seed)

    async def talk() -> None:
        async with house.open(speaker=lambda: Speaker(0.3)) as address, address.stream() as client:
            await client.until("ready")
            await client.say()
            await asyncio.sleep(0.1)  # in the step by now
            for _ in range(100):
                await client.socket.send_str('{"type": "restart"}')
            for _ in range(100):
                await client.until("restarted")
            await client.converse(1)

    asyncio.run(talk())
    assert 1 <= len(restarts) < 10


def test_a_server_that_stops_says_so(house: House) -> None:
    async def talk() -> None:
        async with house.open() as address, address.stream() as client, address.chat() as other:
            await client.until("ready")
            await other.until(0)
            stopping = asyncio.ensure_future(address.server.stop())
            assert (await client.until("error"))["code"] == "closing"
            assert (await client.socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
            assert client.socket.close_code == 1001
            await other.until_closed()
            assert other.error == "The server is shutting down."
            await stopping

    asyncio.run(talk())
