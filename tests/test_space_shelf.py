"""The shelf: memories outlive the page's process and the recording, each visitor sees their own, and leases end."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from space.handlers import Handlers
from space.session import Session
from space.shelf import DAY, Shelf, clean_name, new_secret
from space.shelf_tab import ShelfHandlers, draw
from speech_xl.conversation import ask
from speech_xl.errors import MemoryFileError, OutputError
from speech_xl.model import SpeechModel
from tests.tiny import save_checkpoint, tiny_recognizer_config

QUESTION = "what drink is order 47?"


@pytest.fixture(scope="module")
def words_model(tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    folder = save_checkpoint(tmp_path_factory.mktemp("words") / "tiny", tiny_recognizer_config())
    return SpeechModel.load(str(folder), "torch")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


def heard(model: SpeechModel, recording: Path) -> Session:
    session = Session(model)
    list(Handlers(model, 1.0).hear(str(recording), "8", session))
    return session


def keep(shelf: Shelf, secret: str, session: Session, name: str = "A talk") -> str:
    return shelf.keep(secret, name, session.run.memory, session.run.events, session.model)


def event(**data: Any) -> gr.EventData:
    return gr.EventData(None, data)


def test_a_memory_outlives_the_page_and_the_audio(words_model: SpeechModel, recording: Path, shelf: Shelf) -> None:
    session, secret = heard(words_model, recording), new_secret()
    said = "".join(ask(words_model, session.run.memory, QUESTION))
    segments = session.run.segments()
    identifier = keep(shelf, secret, session)
    session.forget()
    again = Shelf(shelf.folder)  # the page was started again
    (kept,) = again.entries(secret)
    assert (kept.id, kept.name) == (identifier, "A talk") and kept.header.recording.seconds_heard == pytest.approx(
        7.33, abs=0.1
    )
    name, memory, events = again.open(secret, identifier, words_model)
    session.run.memory, session.run.events = memory, events
    assert name == "A talk" and session.run.segments() == segments != []
    assert "".join(ask(words_model, memory, QUESTION)) == said


def test_nobody_reaches_another_visitors_shelf(tiny_speech_model: SpeechModel, recording: Path, shelf: Shelf) -> None:
    mine, others = new_secret(), new_secret()
    identifier = keep(shelf, mine, heard(tiny_speech_model, recording))
    assert shelf.entries(others) == []
    for reach in (shelf.path, shelf.delete, lambda s, i: shelf.open(s, i, tiny_speech_model)):
        with pytest.raises(MemoryFileError, match="not on your shelf"):
            reach(others, identifier)
    for climbing in ("../" + identifier, "..", "", f"{identifier}/../{identifier}"):
        with pytest.raises(MemoryFileError, match="not on your shelf"):
            shelf.path(mine, climbing)
    assert mine not in str(list(shelf.folder.rglob("*")))  # the folder's name does not tell the secret
    assert [kept.id for kept in shelf.entries(mine)] == [identifier]


def test_a_lease_ends_and_opening_begins_it_again(
    tiny_speech_model: SpeechModel, recording: Path, tmp_path: Path
) -> None:
    shelf, secret, session = Shelf(tmp_path / "shelf", days=30), new_secret(), heard(tiny_speech_model, recording)
    opened, forgotten = keep(shelf, secret, session), keep(shelf, secret, session)
    for identifier, days in ((opened, 29), (forgotten, 31)):
        then = time.time() - days * DAY
        for path in (memory := shelf.path(secret, identifier), memory.with_suffix(".json")):
            os.utime(path, (then, then))
    shelf.open(secret, opened, tiny_speech_model)
    assert {kept.id: time.time() - kept.opened < DAY for kept in shelf.entries(secret)} == {
        opened: True,
        forgotten: False,
    }
    assert [kept.id for kept in Shelf(tmp_path / "shelf", days=30).entries(secret)] == [opened]
    assert len(list(shelf.folder.rglob("*.sxl"))) == 1


def test_a_full_shelf_refuses_and_forgets_nothing(
    tiny_speech_model: SpeechModel, recording: Path, tmp_path: Path
) -> None:
    session, secret = heard(tiny_speech_model, recording), new_secret()
    shelf = Shelf(tmp_path / "shelf", budget=session.run.memory.bytes * 12)
    keep(shelf, secret, session)
    with pytest.raises(OutputError, match="Your shelf is full"):
        for _ in range(12):
            keep(shelf, secret, session)
    before = len(shelf.entries(secret))
    assert before >= 1
    with pytest.raises(OutputError, match="This page's shelf is full"):
        for _ in range(40):
            keep(shelf, new_secret(), session)
    assert len(shelf.entries(secret)) == before


def test_a_full_disk_leaves_no_half_memory(
    tiny_speech_model: SpeechModel, recording: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    session, secret = heard(tiny_speech_model, recording), new_secret()
    monkeypatch.setattr(Path, "write_text", full)  # the notes, behind the memory
    with pytest.raises(OutputError, match="disk may be full"):
        keep(shelf, secret, session)
    assert not [path for path in shelf.folder.rglob("*") if path.is_file()] and shelf.entries(secret) == []


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="give another --shelf"):
        Shelf(tmp_path / "file")


def test_a_damaged_memory_is_left_out_and_says_so(
    tiny_speech_model: SpeechModel, recording: Path, shelf: Shelf
) -> None:
    secret = new_secret()
    identifier = keep(shelf, secret, heard(tiny_speech_model, recording))
    path = shelf.path(secret, identifier)
    path.with_suffix(".heard").write_text('[{"seconds": 1}]')
    with pytest.raises(MemoryFileError, match="notes are damaged"):
        shelf.open(secret, identifier, tiny_speech_model)
    path.with_suffix(".json").write_text('{"name": "A talk"}')
    assert shelf.entries(secret) == []
    path.write_bytes(b"no memory")
    with pytest.raises(MemoryFileError):
        shelf.open(secret, identifier, tiny_speech_model)


def test_names_are_cleaned_shown_and_downloaded(
    tiny_speech_model: SpeechModel, recording: Path, shelf: Shelf, tmp_path: Path
) -> None:
    secret = new_secret()
    identifier = keep(shelf, secret, heard(tiny_speech_model, recording), "<b>Town\nmeeting</b>/../x")
    (kept,) = shelf.entries(secret)
    assert kept.name == "<b>Town meeting</b>/../x" and clean_name("a" * 300) == "a" * 80
    drawn = draw([kept], tiny_speech_model.fingerprint, 30)
    assert "<b>" not in drawn and "&lt;b&gt;Town meeting" in drawn and 'data-do="open"' in drawn
    assert "by tiny" in draw([kept], "another model", 30) and "by tiny" not in drawn
    copy = shelf.copy(secret, identifier, tmp_path)
    assert copy.parent == tmp_path and copy.suffix == ".sxl" and "/" not in copy.name
    shelf.rename(secret, identifier, "Another name")
    assert shelf.copy(secret, identifier, tmp_path).name == "Another name.sxl"
    shelf.delete(secret, identifier)
    assert shelf.entries(secret) == [] and not list(shelf.folder.rglob("*.sxl"))


def test_the_tab_keeps_opens_and_asks(words_model: SpeechModel, recording: Path, shelf: Shelf) -> None:
    handlers = Handlers(words_model, 1.0)
    tab, session = ShelfHandlers(handlers, shelf), heard(words_model, recording)
    secret, table = tab.arrive(None)
    assert "Nothing is kept yet" in table and tab.arrive(secret)[0] == secret != tab.arrive(None)[0]
    with pytest.raises(gr.Error, match="no memory to keep"):
        tab.keep(None, secret)
    table, status = tab.keep(session, secret)
    assert "talk is on your shelf" in status and " talk<div" in table
    (kept,) = shelf.entries(secret)
    request = SimpleNamespace(session_hash="visitor")
    _, chat, _, drawn_session, status, *drawn = tab.open(secret, None, event(ids=[kept.id]), request)
    assert chat == [] and "from your shelf" in status and drawn_session.run.source is None
    assert any("sxl-card" in str(part) and "sxlPlay" not in str(part) for part in drawn)
    *_, (_, chat, *_) = handlers.ask(QUESTION, [], drawn_session)
    assert chat[-1]["role"] == "assistant"
    path, _ = tab.download(secret, drawn_session, event(id=kept.id), request)
    assert Path(path).name == "talk.sxl"
    assert " Mine<div" in tab.rename(secret, event(id=kept.id, name="Mine"))
    assert "Nothing is kept yet" in tab.delete(secret, event(id=kept.id))
    with pytest.raises(gr.Error, match="not on your shelf"):
        tab.open(secret, drawn_session, event(ids=[kept.id]), request)


def test_memories_opened_together_are_one_conversation(words_model: SpeechModel, recording: Path, shelf: Shelf) -> None:
    handlers, secret = Handlers(words_model, 1.0), new_secret()
    tab, session = ShelfHandlers(handlers, shelf), heard(words_model, recording)
    seconds, segments = session.run.memory.seconds, session.run.segments()
    ids = [keep(shelf, secret, session, name) for name in ("Monday", "Tuesday")]
    assert 'data-do="join"' in tab.table(secret)
    _, _, _, both, status, *_ = tab.open(secret, None, event(ids=ids), SimpleNamespace(session_hash="visitor"))
    assert "Monday + Tuesday" in status and both.run.memory.seconds == pytest.approx(2 * seconds, abs=0.01)
    said = both.run.segments()
    assert " ".join(s.text for s in said) == " ".join(s.text for s in [*segments, *segments])
    assert said[-1].end == pytest.approx(segments[-1].end + seconds, abs=0.02)
    *_, (_, chat, reasons, *_) = handlers.ask(QUESTION, [], both)
    assert chat[-1]["role"] == "assistant" and "talk.wav, " in reasons
