"""Transcripts on the page and by its endpoints: words as they are recognised, words from the memory, and their files.

Files are made when they are asked for, and a full disk is a sentence.
"""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import gradio as gr
import pytest

from space import transcript as cards
from space.api import Endpoints
from space.handlers import Handlers
from space.session import Session
from speech_xl.model import SpeechModel
from speech_xl.recognition import Word
from speech_xl.transcript import Segment, recognized_segments, transcribe
from tests.tiny import save_checkpoint, tiny_recognizer_config, write_sound


@pytest.fixture(scope="module")
def words_model(tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    """A random model whose speech tokens are recognised words."""
    folder = save_checkpoint(tmp_path_factory.mktemp("words") / "tiny", tiny_recognizer_config())
    return SpeechModel.load(str(folder), "torch")


def heard(model: SpeechModel, recording: Path) -> tuple[Handlers, Session]:
    handlers, session = Handlers(model, 1.0), Session(model)
    list(handlers.hear(str(recording), "raw", session))
    return handlers, session


def test_words_become_sentences_and_no_long_lines() -> None:
    said = ["Good", "evening.", "My", "name", "is", '"Ann."', "And", "now"]
    words = [Word(text, i * 0.5, i * 0.5 + 0.4) for i, text in enumerate(said)]
    words += [Word("later", 60.0, 60.5), *(Word("again", 61.0 + i, 61.5 + i) for i in range(40))]
    segments = list(recognized_segments(words))
    assert [s.text for s in segments[:4]] == ["Good evening.", 'My name is "Ann."', "And now", segments[3].text]
    assert segments[1] == Segment(1.0, 2.9, 'My name is "Ann."') and segments[3].start == 60.0
    assert all(len(s.text) <= 84 for s in segments)
    assert " ".join(s.text for s in segments) == " ".join(w.text for w in words)
    assert list(recognized_segments([])) == []
    kennedy = (
        "And so my fellow Americans, ask not what your country can do for you, ask what you can do for your country."
    )
    words = [Word(text, i * 0.4, i * 0.4 + 0.3) for i, text in enumerate(kennedy.split())]
    assert [s.text.split()[0] for s in recognized_segments(words)] == ["And", "ask"]  # cut behind a comma


def test_words_are_drawn_while_the_recording_is_heard(
    words_model: SpeechModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("space.handlers.REDRAW_SECONDS", 0.0)
    handlers = Handlers(words_model, 1.0)
    draws = handlers.listen(str(write_sound(tmp_path / "talk.wav", 30)), "raw", Session(words_model), None)
    seen = [(d.session.run.memory is None, d.caption, d.transcript) for d in draws]
    early = [transcript for is_early, _, transcript in seen if is_early and "sxl-card" in str(transcript)]
    assert early and cards.AS_RECOGNISED in early[0]
    assert any("sxl-caption" in caption for is_early, caption, _ in seen if is_early) and seen[-1][1] == ""
    lines = [re.findall("<span>(.*?)</span>", t) for _, _, t in seen if "sxl-card" in str(t)]
    assert len(lines[0]) < len(lines[-1])


def test_the_transcript_says_where_its_words_come_from(words_model: SpeechModel, recording: Path) -> None:
    handlers, session = heard(words_model, recording)
    as_heard, _ = handlers.as_heard(session)
    assert cards.AS_RECOGNISED in as_heard and "<button" in as_heard and "sxlPlay(" in as_heard
    *_, (from_memory, _) = handlers.read_memory(session)
    assert cards.FROM_MEMORY in from_memory
    assert session.run.segments() == list(transcribe(words_model, session.run.memory))
    assert handlers.as_heard(session)[0] == as_heard and session.run.read_back is None


def test_a_model_without_words_transcribes_on_demand(tiny_speech_model: SpeechModel, recording: Path) -> None:
    handlers, session = heard(tiny_speech_model, recording)
    assert "Transcribe" in handlers.as_heard(session)[0] and not session.run.has_words
    *_, (drawn, _) = handlers.read_memory(session)
    assert len(re.findall("<li", drawn)) == len(session.run.segments()) > 0


def test_a_new_recording_ends_a_transcript_that_is_being_made(
    tiny_speech_model: SpeechModel, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("space.handlers.REDRAW_SECONDS", 0.0)
    handlers, session = heard(tiny_speech_model, recording)
    reading = handlers.read_memory(session)
    next(reading)
    session.forget()
    assert list(reading) == [] and session.run.read_back is None and session.run.askable() == (None, False)


def test_nothing_heard_is_a_sentence(tiny_speech_model: SpeechModel) -> None:
    handlers, session = Handlers(tiny_speech_model, 1.0), Session(tiny_speech_model)
    with pytest.raises(gr.Error, match="listen to a recording first"):
        list(handlers.read_memory(session))
    for kind in ("sxl", "md", "json", "srt", "vtt", "txt"):
        with pytest.raises(gr.Error, match="There is no "):
            handlers.download(kind, session)
        with pytest.raises(gr.Error, match="There is no "):
            handlers.download(kind, None)


def test_text_of_strangers_is_escaped() -> None:
    drawn = cards.transcript([Segment(0.0, 1.0, "<img src=x onerror=alert(1)>")], (), cards.FROM_MEMORY, True)
    assert "<img" not in drawn and "&lt;img" in drawn


def test_transcripts_download_as_subtitles_and_text(words_model: SpeechModel, recording: Path) -> None:
    handlers, session = heard(words_model, recording)
    srt, vtt, txt = (Path(handlers.download(kind, session)) for kind in ("srt", "vtt", "txt"))
    assert [p.name for p in (srt, vtt, txt)] == ["talk.srt", "talk.vtt", "talk.txt"]
    first = session.run.segments()[0]
    assert re.match(r"1\n\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}\n", srt.read_text())
    assert vtt.read_text().startswith("WEBVTT\n\n") and txt.read_text().splitlines()[0] == first.text
    assert len(txt.read_text().splitlines()) == len(session.run.segments())


def test_listening_writes_no_file_of_its_own(words_model: SpeechModel, recording: Path) -> None:
    handlers, session = Handlers(words_model, 1.0), Session(words_model)
    *_, last = handlers.listen(str(recording), "8", session, None)
    assert "heard, all of it" in last.status and session.run.folder is None
    kept = Path(handlers.download("sxl", session))
    assert kept.exists() and handlers.download("sxl", session) == str(kept)


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    words_model: SpeechModel, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("speech_xl.memory.save_file", full)
    monkeypatch.setattr(Path, "write_text", full)
    handlers, session = Handlers(words_model, 1.0), Session(words_model)
    *_, last = handlers.listen(str(recording), "8", session, None)
    assert "heard, all of it" in last.status
    list(handlers.answer(session.model, session.run, session.run.memory, "what drink is order 47?"))
    for kind in ("sxl", "json", "srt"):
        with pytest.raises(gr.Error, match="disk may be full"):
            handlers.download(kind, session)
    assert list(session.run.folder_path.iterdir()) == []


def test_the_endpoint_gives_either_transcript(words_model: SpeechModel, recording: Path) -> None:
    endpoints = Endpoints(Handlers(words_model, 1.0))
    _, session = endpoints.listen(str(recording), "8", None)
    usual = json.loads(endpoints.transcribe("", session))
    assert usual["source"] == "heard" and usual["segments"]
    assert all(0 <= s["start"] <= s["end"] <= 7.4 and s["text"] for s in usual["segments"])
    read = json.loads(endpoints.transcribe("memory", session))
    assert read["source"] == "memory"
    assert json.loads(endpoints.transcribe_recording(str(recording), "memory", "8")) == read
    with pytest.raises(gr.Error, match="take heard or memory"):
        endpoints.transcribe("both", session)


def test_the_endpoint_without_words_reads_the_memory(tiny_speech_model: SpeechModel, recording: Path) -> None:
    endpoints = Endpoints(Handlers(tiny_speech_model, 1.0))
    with pytest.raises(gr.Error, match="listen to a recording first"):
        endpoints.transcribe("", Session(tiny_speech_model))
    _, session = endpoints.listen(str(recording), "8", None)
    assert json.loads(endpoints.transcribe("", session))["source"] == "memory"
    with pytest.raises(gr.Error, match="No words were recognised"):
        endpoints.transcribe("heard", session)
