"""Chat completions through the official client: right answers, streams, and everything that a request may ask for."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from server.errors import ApiError
from server.fields import ChatMessage
from server.messages import conversation_of
from speech_xl.model import SpeechModel
from speech_xl.prompt import LONGEST_QUESTION
from tests.serving import ANSWER, QUESTION, Server, encoded, input_audio, messages, order, serving, talk, wait_until
from tests.test_together import waiting
from tests.tiny import sound

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(SpeechModel.load("nano", "torch"), tmp_path_factory.mktemp("memories")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def memory(client: OpenAI) -> str:
    """The id of the order's memory."""
    said = client.chat.completions.create(model="nano", messages=messages(QUESTION, input_audio(order())))
    return said.speech_xl["memory"]


def extra(**values: object) -> dict[str, object]:
    return {"speech_xl": values}


def test_an_answer_is_right_and_says_where_it_comes_from(client: OpenAI, server: Server) -> None:
    data = order()
    said = client.chat.completions.create(model="nano", messages=messages(QUESTION, input_audio(data)), temperature=0)
    assert said.choices[0].message.content == ANSWER and said.choices[0].finish_reason == "stop"
    assert said.object == "chat.completion" and said.model == "nano" and said.id.startswith("chatcmpl-")
    evidence = said.speech_xl["evidence"]
    assert evidence and all(0 <= e["start"] < e["end"] <= 9.01 for e in evidence)
    assert said.speech_xl["ratio"] == "8" and said.speech_xl["seconds_heard"] == pytest.approx(9, abs=0.01)


def test_what_was_heard_is_not_heard_again(client: OpenAI, server: Server) -> None:
    audio = input_audio(talk(seed=1))
    heard = server.service.metrics.heard_seconds._value
    first = client.chat.completions.create(model="nano", messages=messages("a b?", audio))
    before = heard.get()
    second = client.chat.completions.create(model="nano", messages=messages("c d?", audio))
    by_id = client.chat.completions.create(
        model="nano", messages=messages("c d?"), extra_body=extra(memory=first.speech_xl["memory"])
    )
    assert heard.get() == before
    assert second.choices[0].message.content == by_id.choices[0].message.content
    assert [r.speech_xl["reused"] for r in (first, second, by_id)] == [False, True, True]
    assert len({r.speech_xl["memory"] for r in (first, second, by_id)}) == 1
    slots = second.usage.prompt_tokens_details.audio_tokens + 1  # one prefix token
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    for usage in (second.usage, by_id.usage):
        assert usage.prompt_tokens_details.cached_tokens == usage.input_tokens_details["cached_tokens"] == slots
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.prompt_tokens > slots


def test_another_ratio_is_another_memory(client: OpenAI) -> None:
    audio = input_audio(talk(seed=2))
    kept = {}
    for ratio in ("raw", 16, None):
        said = client.chat.completions.create(
            model="nano", messages=messages("a?", audio), extra_body=extra(ratio=ratio)
        )
        kept[said.speech_xl["ratio"]] = said.speech_xl["memory"]
    assert set(kept) == {"raw", "16", "8"} and len(set(kept.values())) == 3
    said = client.chat.completions.create(
        model="nano", messages=messages("a?", audio), extra_body=extra(memory_budget="64MiB")
    )
    assert said.speech_xl["memory"] == kept["raw"]


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    asked = {"model": "nano", "messages": messages(QUESTION, input_audio(order()))}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and len({c.id for c in chunks}) == 1
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content and sum(map(bool, pieces)) == 2  # two words
    *_, last, usage = chunks
    assert last.choices[0].finish_reason == "stop" and last.speech_xl["evidence"] == whole.speech_xl["evidence"]
    assert usage.choices == [] and usage.usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    without = list(client.chat.completions.create(**asked, stream=True))
    assert all(c.choices and c.usage is None for c in without)


def test_a_stream_of_a_recording_that_is_new(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="nano", messages=messages("a?", input_audio(talk(seed=3))), stream=True)
    )
    assert chunks[-1].choices[0].finish_reason and chunks[-1].speech_xl["reused"] is False


def test_a_stream_ends_in_done_as_clients_expect(server: Server, memory: str) -> None:
    body = {"model": "nano", "messages": messages(QUESTION), "stream": True, **extra(memory=memory)}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]" and all(e.startswith("data: {") for e in events[:-1])


@pytest.mark.parametrize("kind", ["MP3", "FLAC", "OGG"])
def test_formats(client: OpenAI, kind: str) -> None:
    audio = input_audio(encoded(sound(2.0), kind), kind.lower())
    said = client.chat.completions.create(model="nano", messages=messages("a?", audio))
    assert said.speech_xl["seconds_heard"] == pytest.approx(2, abs=0.2)


@needs_ffmpeg
def test_m4a(client: OpenAI, tmp_path: Path) -> None:
    (tmp_path / "talk.wav").write_bytes(talk(2.0))
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "talk.wav", tmp_path / "talk.m4a"], check=True)
    audio = input_audio((tmp_path / "talk.m4a").read_bytes(), "m4a")
    said = client.chat.completions.create(model="nano", messages=messages("a?", audio))
    assert said.speech_xl["seconds_heard"] == pytest.approx(2, abs=0.2)


def test_a_data_url_is_the_same_recording(client: OpenAI, memory: str) -> None:
    text = base64.encodebytes(order()).decode()  # with line breaks
    part = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{text}"}}
    said = client.chat.completions.create(model="nano", messages=messages(QUESTION, part))
    assert said.speech_xl["memory"] == memory and said.choices[0].message.content == ANSWER


def test_an_answer_is_cut_where_it_is_told_to(client: OpenAI, memory: str) -> None:
    asked = {"model": "nano", "messages": messages(QUESTION), "extra_body": extra(memory=memory)}
    for name in ("max_tokens", "max_completion_tokens"):
        said = client.chat.completions.create(**asked, **{name: 1})
        assert said.choices[0].message.content == "house" and said.choices[0].finish_reason == "length"
        assert said.usage.completion_tokens == 1
    for stop in (" coffee", ["tea", "coffee"]):
        said = client.chat.completions.create(**asked, stop=stop)
        assert said.choices[0].message.content.strip() == "house" and said.choices[0].finish_reason == "stop"
        assert said.speech_xl["evidence"]


def test_an_answer_may_be_drawn(client: OpenAI, memory: str) -> None:
    def said(**asked: float) -> str:
        answer = client.chat.completions.create(
            model="nano", messages=messages(QUESTION), extra_body=extra(memory=memory), max_tokens=8, **asked
        )
        return answer.choices[0].message.content

    hot = [said(temperature=2, seed=seed) for seed in range(6)]
    assert len(set(hot)) > 1 and hot == [said(temperature=2, seed=seed) for seed in range(6)]
    assert said() == said(temperature=0, seed=3) == said(temperature=2, top_p=0) == said(top_p=1e-6, seed=3) == ANSWER
    assert said(top_p=0.999999, seed=-1) == said(temperature=1, top_p=0.999999, seed=-1)


def test_a_span_alone_is_asked(client: OpenAI, memory: str) -> None:
    spans = extra(memory=memory, **{"from": "0:06", "to": 9})
    said = client.chat.completions.create(model="nano", messages=messages(QUESTION), extra_body=spans)
    assert all(e["start"] > 4 for e in said.speech_xl["evidence"])
    with pytest.raises(openai.BadRequestError, match="outside the recording"):
        client.chat.completions.create(
            model="nano", messages=messages(QUESTION), extra_body=extra(memory=memory, **{"from": "1:00"}), stream=True
        )


def test_a_conversation_goes_on(client: OpenAI) -> None:
    first = messages("What size is order 36?", input_audio(order()))
    more = [{"role": "assistant", "content": "not mentioned"}, {"role": "user", "content": QUESTION}]
    system = {"role": "system", "content": "You are a helpful assistant."}
    said = client.chat.completions.create(model="nano", messages=[system, *first, *more])
    assert said.choices[0].message.content == ANSWER


def conversation(*turns: tuple[str, str]):
    return conversation_of([ChatMessage(role=role, content=text) for role, text in turns])


def test_history_stands_before_the_question_as_text() -> None:
    assert conversation(("user", " a? ")).question == "a?"
    assert conversation(("system", "Be short."), ("user", "a?")).question == "Be short.\na?"
    whole = conversation(("developer", "S"), ("user", "a?"), ("assistant", "b"), ("user", "c?"))
    assert whole.question == "S\nQuestion: a?\nAnswer: b\nQuestion: c?" and not whole.warnings
    long = conversation(("user", "x" * LONGEST_QUESTION), ("assistant", "b"), ("user", "c?"))
    assert long.question == "Answer: b\nQuestion: c?" and "1 of them" in long.warnings[0]
    for turns in ([("user", "a?"), ("assistant", "b")], [("user", "  ")], [("user", "x" * (LONGEST_QUESTION + 1))]):
        with pytest.raises(ApiError):
            conversation(*turns)


def test_the_latest_recording_is_asked(client: OpenAI, memory: str) -> None:
    early, late = messages("a?", input_audio(talk(seed=4))), messages(QUESTION, input_audio(order()))
    said = client.chat.completions.create(model="nano", messages=[*early, {"role": "assistant", "content": "b"}, *late])
    assert said.speech_xl["memory"] == memory
    both = messages("a?", input_audio(talk(seed=4)), input_audio(order()))
    with pytest.raises(openai.BadRequestError, match="one recording"):
        client.chat.completions.create(model="nano", messages=both)


def test_the_documented_examples_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = (Path(__file__).parent.parent / "docs" / "server.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.wav").write_bytes(order())
    known: dict[str, object] = {}
    for example in examples:
        example = example.replace("http://127.0.0.1:8000", server.url).replace('"small"', '"nano"')
        exec(example.replace("talk.m4a", "talk.wav").replace("When does the work begin?", QUESTION), known)
    assert capsys.readouterr().out.startswith(ANSWER)


def test_models_and_health(client: OpenAI, server: Server) -> None:
    (model,) = client.models.list()
    assert model.id == "nano" and model.speech_xl["ratios"] == ["raw", "2", "4", "8", "16"]
    assert client.models.retrieve("nano") == model
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["x-request-id"] and "speech_xl_answer_tokens_total" in answer.text
    assert 'route="/v1/models"' in answer.text


def test_questions_at_once_share_a_batch(
    client: OpenAI, server: Server, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = server.service.model, []
    together = model.backend.answer_together

    def noted(state: object, texts: list[list[int]], *rest: object) -> Iterator:
        sizes.append(len(texts))
        return together(state, texts, *rest)

    def said(question: str) -> str:
        asked = client.chat.completions.create(
            model="nano", messages=messages(question), extra_body=extra(memory=memory), stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in asked)

    monkeypatch.setattr(model.backend, "answer_together", noted)
    questions = [QUESTION, "What size is order 36?", "What roast is order 36?"]
    alone = [said(question) for question in questions]
    with ThreadPoolExecutor(3) as pool:
        with model.lock:  # the model is busy
            asked = [pool.submit(said, question) for question in questions]
            wait_until(lambda: waiting(model) == 3)
        assert [a.result() for a in asked] == alone and alone[0] == ANSWER
    assert sizes == [3]
