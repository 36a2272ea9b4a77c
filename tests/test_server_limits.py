"""A server under pressure: full lines, clients that leave, recordings that are too long, and work that is shared."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile as sf

import server.library
from server import job, streaming
from server.errors import ApiError
from server.workers import ThreadStream, Workers
from speech_xl.conversation import Heard, Listening
from speech_xl.model import SpeechModel
from tests.serving import LONGEST_WAIT, Server, input_audio, messages, serving, talk, wait_until


class Held(Listening):
    """Hears an interval, then waits until the test lets it go on."""

    go_on = threading.Event()
    begun = threading.Semaphore(0)

    def __iter__(self) -> Iterator[Heard]:
        for heard in super().__iter__():
            yield heard
            self.begun.release()
            self.go_on.wait(LONGEST_WAIT)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Held]]:
    Held.go_on, Held.begun = threading.Event(), threading.Semaphore(0)
    monkeypatch.setattr(server.library, "Listening", Held)
    yield Held
    Held.go_on.set()


@pytest.fixture
def tight(tiny_speech_model: SpeechModel, tmp_path: Path) -> Iterator[Server]:
    """One recording and one question at a time, and one more of each that waits."""
    with serving(tiny_speech_model, tmp_path / "memories", listening=1, answering=1, waiting=1) as tight:
        yield tight


def body(seed: int, stream: bool = False) -> dict[str, object]:
    return {
        "model": "tiny",
        "messages": messages("a?", input_audio(talk(seed=seed))),
        "stream": stream,
        "max_tokens": 4,
    }


def test_a_full_line_is_said_to_be_full(tight: Server, held: type[Held]) -> None:
    client = tight.client()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.chat.completions.create, **body(1))
        assert held.begun.acquire(timeout=LONGEST_WAIT)
        second = pool.submit(client.chat.completions.create, **body(2))
        wait_until(lambda: tight.service.listening.jobs == 2)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="try again") as refused:
                client.chat.completions.create(**body(3, stream))
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 300
        held.go_on.set()
        assert first.result().choices and second.result().choices
    assert client.chat.completions.create(**body(3)).choices  # there is room again


def test_requests_beyond_all_lines_are_not_even_read(tight: Server, held: type[Held]) -> None:
    most = tight.service.settings.in_flight
    with ThreadPoolExecutor(most) as pool:
        asked = [
            pool.submit(httpx.post, f"{tight.url}/v1/chat/completions", json=body(1), timeout=LONGEST_WAIT)
            for _ in range(most)
        ]
        wait_until(lambda: tight.service.metrics.in_flight._value.get() == most)
        answer = httpx.post(f"{tight.url}/v1/chat/completions", content=b"never read")
        assert answer.status_code == 429 and answer.headers["retry-after"] == "5"
        assert httpx.get(f"{tight.url}/health").status_code == 200
        held.go_on.set()
        assert {a.result().status_code for a in asked} <= {200, 429}


def test_the_same_recording_is_heard_once_for_all_who_ask(tight: Server, held: type[Held]) -> None:
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(tight.client().chat.completions.create, **body(5)) for _ in range(3)]
        wait_until(lambda: [h.seats for h in tight.service.library.hearings.values()] == [3])
        held.go_on.set()
        answers = [a.result() for a in asked]
    assert len({a.choices[0].message.content for a in answers}) == 1
    assert tight.service.metrics.memories.labels("heard")._value.get() == 1


@contextlib.contextmanager
def asking(tight: Server, **asked: object) -> Iterator[None]:
    """A client that has sent its question, and leaves at the block's end."""
    connection = http.client.HTTPConnection("127.0.0.1", tight.port, timeout=LONGEST_WAIT)
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
    try:
        yield
    finally:
        connection.sock.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_hearing(tight: Server, held: type[Held], stream: bool) -> None:
    with asking(tight, **body(6, stream)):
        assert held.begun.acquire(timeout=LONGEST_WAIT)
    wait_until(lambda: not tight.service.library.hearings)
    held.go_on.set()
    wait_until(lambda: tight.service.listening.jobs == 0)
    assert not held.begun.acquire(blocking=False)  # not an interval more
    assert tight.service.library.store.bytes == 0


def test_one_who_leaves_takes_nothing_from_the_others(tight: Server, held: type[Held]) -> None:
    def seats() -> list[int]:
        return [hearing.seats for hearing in tight.service.library.hearings.values()]

    with ThreadPoolExecutor(1) as pool:
        with asking(tight, **body(7)):
            assert held.begun.acquire(timeout=LONGEST_WAIT)
            other = pool.submit(tight.client().chat.completions.create, **body(7))
            wait_until(lambda: seats() == [2])
        wait_until(lambda: seats() == [1])
        held.go_on.set()
        assert other.result().choices


def test_who_waits_in_line_and_leaves_is_never_heard(tight: Server, held: type[Held]) -> None:
    with asking(tight, **body(8)):
        assert held.begun.acquire(timeout=LONGEST_WAIT)
        with asking(tight, **body(9)):
            wait_until(lambda: tight.service.listening.jobs == 2)
        wait_until(lambda: tight.service.listening.jobs == 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(tight: Server, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    memory = tight.client().chat.completions.create(**body(10)).speech_xl["memory"]
    begun, go_on, steps = threading.Event(), threading.Event(), []
    answer = tight.service.model.backend.answer

    def slowly(*arguments: object):
        for step in answer(*arguments):
            steps.append(step)
            begun.set()
            go_on.wait(LONGEST_WAIT)
            yield step

    monkeypatch.setattr(tight.service.model.backend, "answer", slowly)
    asked = {"model": "tiny", "messages": messages("a?"), "max_tokens": 50, "speech_xl": {"memory": memory}}
    with asking(tight, **asked, stream=stream):
        assert begun.wait(LONGEST_WAIT)
    wait_until(lambda: tight.service.metrics.in_flight._value.get() == 0)
    go_on.set()
    wait_until(lambda: tight.service.answering.jobs == 0)
    assert len(steps) <= 2


def test_a_closed_stream_runs_its_generator_to_its_end() -> None:
    ended = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            ended.set()

    async def take_two() -> list[int]:
        stream, taken = ThreadStream(workers, numbers), []
        async for number in stream:
            taken.append(number)
            if len(taken) == 2:
                stream.close()
                return taken

    workers = Workers("counting", 1, 0)
    assert asyncio.run(take_two()) == [0, 1]
    assert ended.wait(LONGEST_WAIT)
    wait_until(lambda: workers.jobs == 0)


def test_an_error_on_a_thread_is_raised_where_it_is_awaited() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise ApiError(418, "No coffee.")

    async def take_all() -> list[int]:
        return [n async for n in ThreadStream(Workers("failing", 1, 0), fails)]

    with pytest.raises(ApiError, match="No coffee"):
        asyncio.run(take_all())


def test_recordings_beyond_the_limit(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    limits = {"hours": 5 / 3600, "upload_bytes": 300_000, "json_bytes": 600_000, "resident_bytes": 10_000}
    with serving(tiny_speech_model, tmp_path / "memories", **limits) as server:
        client = server.client()

        def refused(data: bytes, **asked: object) -> str:
            audio = input_audio(data)
            with pytest.raises(openai.APIStatusError) as error:
                client.chat.completions.create(model="tiny", messages=messages("a?", audio), **asked)
            assert error.value.status_code == 413
            return error.value.body["message"]

        assert "0:06" in refused(talk(6.0))
        assert "larger than 292.97KiB" in refused(talk(10.0))
        assert "body is larger" in refused(talk(20.0))
        assert "larger ratio" in refused(talk(4.5), extra_body={"speech_xl": {"ratio": "raw"}})
        assert client.chat.completions.create(**body(1)).choices


def test_a_file_that_holds_more_than_it_declares(
    tiny_speech_model: SpeechModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: type[Held]
) -> None:
    short = tmp_path / "short.wav"
    sf.write(short, np.zeros(16_000, np.float32), 16_000)
    declared = server.library.probe(short)
    monkeypatch.setattr(server.library, "probe", lambda path: declared)
    monkeypatch.setattr(job, "SECONDS_OF_SILENCE", 10 * LONGEST_WAIT)  # what was heard begins a stream, not the clock
    asked = {"model": "tiny", "messages": messages("a?", input_audio(talk(9.0)))}
    with serving(tiny_speech_model, tmp_path / "memories", hours=5 / 3600) as limited:
        chunks = limited.client().chat.completions.create(**asked, stream=True)  # begun: an interval has been heard
        held.go_on.set()
        with pytest.raises(openai.APIError, match="long or more"):
            list(chunks)
        with pytest.raises(openai.APIStatusError, match="long or more") as error:
            limited.client().chat.completions.create(**asked)
        assert error.value.status_code == 413
        assert limited.service.library.store.bytes == 0


def test_a_stream_is_not_silent_while_it_waits(
    tight: Server, held: type[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SECONDS_OF_SILENCE", 0.05)
    url = f"{tight.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body(11, stream=True), timeout=LONGEST_WAIT) as answer:
        lines = answer.iter_lines()
        assert any(line.startswith(":") for line in lines)
        held.go_on.set()
        assert "data: [DONE]" in list(lines)
