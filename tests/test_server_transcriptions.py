"""Transcripts through the official client: every format, streams, spans, and the memory that they are read from."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from openai import OpenAI

from speech_xl.memory import load_memory
from speech_xl.model import SpeechModel
from speech_xl.transcript import Segment, text_lines, transcribe
from tests.serving import Server, input_audio, messages, serving, talk


@pytest.fixture(scope="module")
def server(tiny_speech_model: SpeechModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tiny_speech_model, tmp_path_factory.mktemp("memories")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return server.client()


FILE = ("talk.wav", talk(7.33))


@pytest.fixture(scope="module")
def segments(client: OpenAI, server: Server) -> list[Segment]:
    """What the core reads out of the memory that the server keeps."""
    said = client.chat.completions.create(model="tiny", messages=messages("a?", input_audio(FILE[1])), max_tokens=2)
    (path,) = server.service.settings.store.glob(f"*/{said.speech_xl['memory']}.sxl")
    read = list(transcribe(server.service.model, load_memory(path, server.service.model)))
    assert len(read) > 3
    return read


def write_down(client: OpenAI, **asked: object):
    return client.audio.transcriptions.create(model="tiny", **{"file": FILE} | asked)


def test_all_formats_say_the_same(client: OpenAI, segments: list[Segment]) -> None:
    text = " ".join(s.text for s in segments)
    plain = write_down(client)
    assert plain.text == text and plain.usage.seconds == 8
    assert write_down(client, response_format="text") == text + "\n"
    for kind in ("srt", "vtt"):
        assert write_down(client, response_format=kind) == "".join(f"{line}\n" for line in text_lines(segments, kind))
    verbose = write_down(client, response_format="verbose_json", language="en", timestamp_granularities=["segment"])
    assert verbose.text == text and verbose.duration == pytest.approx(7.33) and verbose.language == "en"
    assert [(s.start, s.end, s.text) for s in verbose.segments] == [(s.start, s.end, s.text) for s in segments]
    assert [s.id for s in verbose.segments] == list(range(len(segments)))
    assert all(s.compression_ratio > 0 and s.tokens for s in verbose.segments)
    assert write_down(client, response_format="verbose_json").language == "und"


def test_a_stream_says_the_same(client: OpenAI, segments: list[Segment]) -> None:
    *deltas, done = write_down(client, stream=True)
    assert {e.type for e in deltas} == {"transcript.text.delta"} and done.type == "transcript.text.done"
    assert "".join(e.delta for e in deltas) == done.text == " ".join(s.text for s in segments)
    assert [e.speech_xl for e in deltas] == [{"start": s.start, "end": s.end} for s in segments]
    assert done.usage.output_tokens > 0 and done.speech_xl["reused"] is True


def test_a_span_of_a_memory(client: OpenAI, server: Server, segments: list[Segment]) -> None:
    memory = next(m["id"] for m in client.get("/memories", cast_to=object)["data"] if m["seconds_heard"] == 7.33)
    fields = {"speech_xl[memory]": memory, "speech_xl[from]": "2", "speech_xl[to]": "0:03", "model": "tiny"}
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", files=[(n, (None, v)) for n, v in fields.items()])
    assert answer.json()["text"] == " ".join(s.text for s in segments if s.start < 3 and s.end > 2)


def test_a_memory_file_is_as_good_as_its_recording(client: OpenAI, server: Server, segments: list[Segment]) -> None:
    for memory in client.get("/memories", cast_to=object)["data"]:
        data = httpx.get(f"{server.url}/v1/memories/{memory['id']}/content").content
        if memory["seconds_heard"] == 7.33:
            assert write_down(client, file=("talk.sxl", data)).text == " ".join(s.text for s in segments)


def test_a_recording_is_heard_first(client: OpenAI) -> None:
    file = ("new.wav", talk(3.0, seed=21))
    events = list(write_down(client, file=file, stream=True))
    assert events[-1].speech_xl["reused"] is False
    assert write_down(client, file=file, extra_body={"speech_xl": {"ratio": "raw"}}).text
    kept = [m["ratio"] for m in client.get("/memories", cast_to=object)["data"] if m["filename"] == "new.wav"]
    assert sorted(kept) == ["4", "raw"]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"file": ("a.wav", b"this is no sound")}, "a.wav is not a recording"),
        ({"file": ("a.wav", b"")}, "empty"),
        ({"file": ("../../etc/a.wav", b"no sound")}, "etc/a.wav is not"),
        ({"model": "whisper-1"}, "no model 'whisper-1'"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "srt", "stream": True}, "leave stream out"),
        ({"timestamp_granularities": ["word"], "response_format": "verbose_json"}, "times of segments"),
        ({"include": ["logprobs"]}, "nothing to include"),
        ({"temperature": 0.5}, "most probable"),
        ({"extra_body": {"speech_xl": {"ratio": "3"}}}, "Ratio 3"),
        ({"extra_body": {"speech_xl": {"rate": "3"}}}, "rate"),
        ({"extra_body": {"speech_xl": {"from": "1:00"}}}, "outside the recording"),
    ],
)
def test_what_cannot_be_written_down(client: OpenAI, asked: dict[str, object], sentence: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        client.audio.transcriptions.create(**{"model": "tiny", "file": FILE} | asked)
    message = refused.value.body["message"]
    assert sentence.removeprefix("etc/") in message and message.endswith(".") and "/tmp" not in message


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"nothing", "multipart/form-data", 400),
        (b"--b\r\nnothing", "multipart/form-data; boundary=b", 400),
        (
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            400,
        ),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
    ],
)
def test_forms_that_are_none(server: Server, content: bytes, kind: str, status: int) -> None:
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status and answer.json()["error"]["message"].endswith(".")


def test_many_fields_and_files_are_refused(server: Server) -> None:
    url = f"{server.url}/v1/audio/transcriptions"
    many = [(f"field{n}", (None, "x")) for n in range(100)]
    two = [("file", FILE), ("file", FILE)]
    long = [("prompt", (None, "x" * 10**6)), ("file", FILE)]
    for files in (many, two, long):
        assert httpx.post(url, files=files).status_code == 400
    assert not server.service.library.hearings
