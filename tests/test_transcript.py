"""Transcripts: every interval asked from its own slots, words that borders cut made whole, and the text formats."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl import recall
from speech_xl.conversation import Listening
from speech_xl.errors import QuestionError
from speech_xl.memory import AudioMemory, RecordingSource
from speech_xl.model import SpeechModel
from speech_xl.slices import slice_memory
from speech_xl.transcript import Segment, join_words, text_lines, transcribe


@pytest.fixture(scope="module")
def memory(tiny_speech_model: SpeechModel, recording: Path) -> AudioMemory:
    listening = Listening(tiny_speech_model, recording, 4)
    list(listening)
    return listening.memory


@pytest.mark.parametrize("at_once", [1, 4, 8])
def test_each_interval_is_asked_from_its_own_slots(
    tiny_speech_model: SpeechModel, memory: AudioMemory, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(recall, "INTERVALS_AT_ONCE", at_once)
    memory.recalled.clear()
    backend, prompt, p = tiny_speech_model.backend, tiny_speech_model.prompt, len(memory.prefix)
    expected = []
    for first in range(0, 23, 4):  # 92 speech tokens: 5 intervals of 16, and one of 12, at ratio 4
        last = min(first + 4, 23)
        tokens = (int(memory.spans[last - 1, 1]) - int(memory.spans[first, 0])) * 2
        steps = backend.answer(backend.slice(memory.state, p, first, last), prompt.transcribe_ids, p + last)
        ids = itertools.takewhile(lambda t: t not in prompt.end_ids, (s.token for s in itertools.islice(steps, tokens)))
        text = " ".join(prompt.decode(list(ids)).split())
        if text:
            times = memory.slot_times[[first, last - 1], [0, 1]]
            expected.append(Segment(*np.round(times.astype(float), 2).tolist(), text))
    assert list(transcribe(tiny_speech_model, memory)) == expected and expected
    middle = list(transcribe(tiny_speech_model, memory, 2.0, 3.0))
    assert middle == [s for s in expected if s.start < 3 and s.end > 2] and middle != expected


def test_spans_that_cannot_be_are_refused_at_once(tiny_speech_model: SpeechModel, memory: AudioMemory) -> None:
    with pytest.raises(QuestionError, match="outside"):
        transcribe(tiny_speech_model, memory, 100.0)
    with pytest.raises(ValueError, match="slice"):
        transcribe(tiny_speech_model, slice_memory(tiny_speech_model, memory, 1, 2))


def utf8(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def without_first_space(ids: list[int]) -> str:
    """As tokenizers with a prefix space decode."""
    return utf8(ids).removeprefix(" ")


words = st.text(st.sampled_from("aböß€."), min_size=1, max_size=8)


@pytest.mark.parametrize("decode", [utf8, without_first_space])
@settings(deadline=None)
@given(text=st.lists(words, max_size=30).map(" ".join), sizes=st.lists(st.sampled_from([0, 4, 5, 7, 11]), min_size=60))
def test_words_cut_at_any_byte_are_whole_again(decode, text: str, sizes: list[int]) -> None:
    data, pieces = (" " + text).encode(), []
    for size in [*sizes, len(text) * 4]:
        pieces.append(list(data[:size]))
        data = data[size:]
    texts = list(join_words(pieces, decode))
    assert len(texts) == len(pieces)
    assert [word for t in texts for word in t.split()] == text.split()


def test_a_word_belongs_to_the_piece_where_it_begins() -> None:
    pieces = [list(p.encode()) for p in (" Good mor", "n", "ing", " all", "", " of you", ".")]
    assert list(join_words(pieces, utf8)) == ["Good morning", "", "", "all", "", "of you.", ""]
    letters = [list(p.encode()) for p in ("x" * 10, "y" * 100)]  # a writing system without spaces
    assert list(join_words(letters, utf8)) == ["x" * 10, "y" * 100]


@pytest.mark.parametrize(
    ("recognizer", "texts"), [(object(), ["Good morning", "all"]), (None, ["Good mor", "ning all"])]
)
def test_only_recognised_words_go_on_from_interval_to_interval(recognizer: object, texts: list[str]) -> None:
    said = [list(b" Good mor"), list(b"ning all")]
    model = SimpleNamespace(
        config=SimpleNamespace(recognizer=recognizer),
        prompt=SimpleNamespace(text=utf8, decode=lambda ids: utf8(ids).strip(), transcribe_ids=[1], end_ids=()),
        backend=SimpleNamespace(answer_spans=lambda state, prefix, spans, *_: said),
        lock=contextlib.nullcontext(),
    )
    times = np.stack([np.arange(20), np.arange(20) + 1], axis=1).astype(np.float32)
    source = RecordingSource("a.wav", 20.0, 20.0, "")
    spans = np.array([[0, 5], [5, 10], [10, 20]])
    heard = AudioMemory(None, spans, times, (5, 10), 10, (0,), source, "m", "f", "sst", 0)
    assert list(transcribe(model, heard)) == [Segment(0.0, 10.0, texts[0]), Segment(10.0, 20.0, texts[1])]


def test_text_formats() -> None:
    segments = [Segment(0.5, 3.25, "Bread & <butter>."), Segment(3661.0, 3662.0, "Tea.")]
    assert list(text_lines(segments, "txt")) == ["Bread & <butter>.", "Tea."]
    assert list(text_lines(segments, "srt")) == [
        "1",
        "00:00:00,500 --> 00:00:03,250",
        "Bread & <butter>.",
        "",
        "2",
        "01:01:01,000 --> 01:01:02,000",
        "Tea.",
        "",
    ]
    assert list(text_lines(segments, "vtt")) == [
        "WEBVTT",
        "",
        "00:00:00.500 --> 00:00:03.250",
        "Bread &amp; &lt;butter&gt;.",
        "",
        "01:01:01.000 --> 01:01:02.000",
        "Tea.",
        "",
    ]
