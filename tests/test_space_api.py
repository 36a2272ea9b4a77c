"""The endpoints for programs: the documented example, separate sessions, and wrong input answered by sentences."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from space.api import Endpoints
from space.downloads import download
from space.handlers import Handlers
from space.page import build_page, look
from space.pictures import shown_name
from space.session import Session
from space.work import CANCELLED, Superseded
from speech_xl.errors import SpeechXLError
from speech_xl.model import SpeechModel
from tests.tiny import write_sound

ROOT = Path(__file__).parent.parent
QUESTION = "what drink is order 47?"
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def address(tiny_speech_model: SpeechModel) -> Iterator[str]:
    page = build_page(tiny_speech_model, max_hours=0.1)
    _, url, _ = page.queue().launch(prevent_thread_lock=True, quiet=True, **look())
    yield url
    page.close()


@pytest.fixture
def client(address: str) -> Client:
    return Client(address, verbose=False)


def test_the_documented_example_runs(address: str, recording: Path, tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs/space.md").read_text(), re.DOTALL)[1]
    assert len(example.splitlines()) <= 10
    example = example.replace("http://127.0.0.1:7860", address).replace("talk.wav", str(recording))
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_listen_ask_and_go_on_from_the_memory(client: Client, address: str, recording: Path) -> None:
    heard = json.loads(client.predict(handle_file(recording), "8", api_name="/listen"))
    assert heard["seconds"] == pytest.approx(7.33, abs=0.1) and heard["ratio"] == "8"
    said = json.loads(client.predict(QUESTION, api_name="/ask"))
    assert all(e["start"] < e["end"] <= heard["seconds"] for e in said["evidence"])
    kept = client.predict(api_name="/memory")
    other = Client(address, verbose=False)
    assert json.loads(other.predict(handle_file(kept), "", api_name="/listen"))["bytes"] == heard["bytes"]
    assert json.loads(other.predict(QUESTION, api_name="/ask"))["answer"] == said["answer"]
    alone = json.loads(other.predict(handle_file(recording), QUESTION, "8", api_name="/ask_recording"))
    assert alone["answer"] == said["answer"]


def test_two_clients_do_not_see_each_other(client: Client, address: str, recording: Path, tmp_path: Path) -> None:
    other = Client(address, verbose=False)
    client.predict(handle_file(recording), "", api_name="/listen")
    with pytest.raises(AppError, match="listen to a recording first"):
        other.predict(QUESTION, api_name="/ask")
    with pytest.raises(AppError, match="listen to a recording first"):
        other.predict(api_name="/memory")
    other.predict(handle_file(write_sound(tmp_path / "short.wav", 2.0)), "", api_name="/listen")
    assert json.loads(client.predict(QUESTION, api_name="/ask"))["heard_seconds"] == pytest.approx(7.33, abs=0.1)
    assert json.loads(other.predict(QUESTION, api_name="/ask"))["heard_seconds"] == pytest.approx(2.0, abs=0.1)


def test_only_the_documented_endpoints_are_public(client: Client) -> None:
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert sorted(named) == ["/ask", "/ask_recording", "/listen", "/memory", "/transcribe", "/transcribe_recording"]


@pytest.mark.parametrize("name", ["notes.wav", "notes.mp3", "notes.sxl", "<img src=x onerror=alert(1)>.wav"])
def test_a_file_that_is_not_what_it_says_is_a_sentence(client: Client, tmp_path: Path, name: str) -> None:
    wrong = tmp_path / name
    wrong.write_text("no sound at all")
    with pytest.raises(AppError) as refused:
        client.predict(handle_file(wrong), "", api_name="/listen")
    assert "Traceback" not in str(refused.value) and str(refused.value).endswith(".")


@pytest.mark.parametrize("ratio", ["7", "fast", "-1", "12 parsecs"])
def test_a_wrong_ratio_is_a_sentence(client: Client, recording: Path, ratio: str) -> None:
    with pytest.raises(AppError):
        client.predict(handle_file(recording), ratio, api_name="/listen")


def test_a_name_that_climbs_stays_in_the_upload_folder(address: str) -> None:
    files = {"files": ("../../../tmp/climbed.wav", b"no sound", "audio/wav")}
    answer = httpx.post(f"{address}gradio_api/upload", files=files)
    assert answer.status_code >= 400 or all(".." not in path for path in answer.json())
    assert not Path("/tmp/climbed.wav").exists()


def test_names_are_escaped_before_they_are_shown() -> None:
    assert "<" not in shown_name("/a/<b onmouseover=x>.wav")


def test_a_recording_over_the_limit_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(AppError, match="this page takes"):
        client.predict(handle_file(write_sound(tmp_path / "long.wav", 400)), "", api_name="/listen")


def test_an_answer_given_while_listening_keeps_its_evidence(
    tiny_speech_model: SpeechModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("space.handlers.REDRAW_SECONDS", 0.0)
    handlers = Handlers(tiny_speech_model, 1.0)
    redraws = handlers.listen(str(write_sound(tmp_path / "long.wav", 60)), "", Session(tiny_speech_model), None)
    session = next(redraws).session
    while not session.run.events:
        next(redraws)
    *_, (_, chat, buttons, timeline, player) = handlers.ask(QUESTION, [], session)
    assert chat[-1]["content"].startswith("Of the first ") and "<button" in buttons and "data-heat" in timeline
    assert player.playback_position == session.run.answers[-1].evidence[0].start
    drawn = next(redraws)
    assert drawn.player == gr.skip() and 'class="evidence"' in drawn.timeline
    handlers.plays(True, session)
    *_, (*_, player) = handlers.ask(QUESTION, [], session)
    assert player == gr.skip()  # somebody is listening: the player is not moved
    redraws.close()


def test_a_question_is_seen_in_the_conversation_before_anything_is_computed(
    tiny_speech_model: SpeechModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, handlers = Session(tiny_speech_model), Handlers(tiny_speech_model, 1.0)
    list(handlers.hear(str(write_sound(tmp_path / "talk.wav", 60)), "8", session))
    with monkeypatch.context() as patch:
        patch.setattr(tiny_speech_model.backend, "answer", None)
        asked = handlers.ask(QUESTION, [], session)
        box, chat, *rest = next(asked)
    assert box == "" and chat == [{"role": "user", "content": QUESTION}] and rest == [gr.skip()] * 3
    boxes = [box for box, *_ in asked]
    assert boxes and boxes == [gr.skip()] * len(boxes)  # another question may be typed


def test_a_session_that_ends_in_mid_listening_leaves_nothing(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    session, handlers = Session(tiny_speech_model), Handlers(tiny_speech_model, 1.0)
    hearing = handlers.hear(str(write_sound(tmp_path / "talk.wav", 60)), "8", session)
    next(hearing), next(hearing)
    listening = session.run.listening
    session.forget()
    with pytest.raises(Superseded):
        next(hearing)
    assert listening.cancelled and session.run.memory is None


def test_a_second_recording_takes_the_first_ones_place(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    handlers, session = Handlers(tiny_speech_model, 1.0), Session(tiny_speech_model)
    first = handlers.listen(str(write_sound(tmp_path / "first.wav", 60)), "8", session, None)
    while not session.run.events:
        next(first)
    second, session, *_ = handlers.prepare(str(write_sound(tmp_path / "second.wav", 5)), None, session, None)
    draws = list(handlers.listen(second, "8", session, None))
    assert "second.wav: 0:05 heard" in draws[-1][1]
    assert list(first) == []  # it says nothing more, and takes nothing away
    assert session.run.memory.seconds == pytest.approx(5, abs=0.1) and session.run.source == second
    assert sum(e.interval_slots for e in session.run.events) < 10


def test_cancel_holds_before_while_and_after(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    handlers, path = Handlers(tiny_speech_model, 1.0), str(write_sound(tmp_path / "talk.wav", 60))
    session = Session(tiny_speech_model)
    assert handlers.cancel(session) == "Nothing is being heard."
    handlers.prepare(path, None, session, None)
    assert handlers.cancel(session) == CANCELLED  # before its turn came
    assert [draw[1] for draw in handlers.listen(path, "8", session, None)][-1] == CANCELLED
    assert session.run.memory is None and not session.run.events
    hearing = handlers.hear(path, "8", session)
    next(hearing), next(hearing)
    assert handlers.cancel(session) == CANCELLED
    assert list(hearing)[-1] == CANCELLED and session.run.memory is None
    assert handlers.cancel(session) == "Nothing is being heard."


def test_retry_and_clear_follow_the_chat(tiny_speech_model: SpeechModel, recording: Path) -> None:
    handlers, session = Handlers(tiny_speech_model, 1.0), Session(tiny_speech_model)
    list(handlers.hear(str(recording), "8", session))
    *_, (_, chat, *_) = handlers.ask("What drink is order 4?", [], session)
    *_, (box, chat, *_) = handlers.ask(" ", chat, session)
    assert box == " " and len(chat) == 4 and len(session.run.answers) == 1
    *_, (_, chat, *_) = handlers.retry(chat, session)  # the question that was refused, not the one before
    assert len(chat) == 4 and chat[0]["content"] == "What drink is order 4?"
    *_, (_, chat, *_) = handlers.retry(chat[:2], session)
    assert len(chat) == 2 and [a.question for a in session.run.answers] == ["What drink is order 4?"]
    chat, _, timeline = handlers.clear(session)
    assert chat == [] and session.run.answers == [] and 'class="evidence"' not in timeline


def test_a_program_may_ask_while_its_first_recording_is_heard(client: Client, tmp_path: Path) -> None:
    heard = client.submit(handle_file(write_sound(tmp_path / "long.wav", 330)), "8", api_name="/listen")
    deadline = time.monotonic() + 60
    while True:  # until something can be asked about
        try:
            said = json.loads(client.predict(QUESTION, api_name="/ask"))
            break
        except AppError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert said["heard_seconds"] <= json.loads(heard.result())["seconds"]


def test_a_session_ends_with_its_files(tiny_speech_model: SpeechModel, recording: Path) -> None:
    session = Session(tiny_speech_model)
    Endpoints(Handlers(tiny_speech_model, 1.0)).listen(str(recording), "", session)
    kept = Path(download("sxl", session))
    assert kept.exists()
    session.forget()
    assert not kept.exists()


def test_no_recording_is_a_sentence(tiny_speech_model: SpeechModel) -> None:
    with pytest.raises(SpeechXLError, match="Choose a recording first"):
        list(Handlers(tiny_speech_model, 1.0).hear(None, "", Session(tiny_speech_model)))


@needs_ffmpeg
def test_a_file_that_hides_its_length_is_held_to_the_limit_too(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    path, session = tmp_path / "stream.aac", Session(tiny_speech_model)
    command = ["ffmpeg", "-v", "error", "-i", write_sound(tmp_path / "talk.wav", 60), path]
    subprocess.run(command, check=True)
    with pytest.raises(SpeechXLError, match=r"this page takes 0\.005 h"):
        list(Handlers(tiny_speech_model, 0.005).hear(str(path), "8", session))
    assert session.run.memory is None and session.run.listening is None


def test_an_export_says_what_was_heard_when_it_was_asked(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    handlers, session = Handlers(tiny_speech_model, 1.0), Session(tiny_speech_model)
    hearing = handlers.hear(str(write_sound(tmp_path / "talk.wav", 60)), "8", session)
    while not session.run.events:
        next(hearing)
    early = session.run.askable()[0]
    list(handlers.answer(session.model, session.run, early, "What drink is order 4?"))
    list(hearing)
    list(handlers.answer(session.model, session.run, session.run.memory, "What drink is order 5?"))
    first, second = Path(download("md", session)).read_text().split("**What drink")[1:]
    assert "Of the first 0:" in first and "Of the first" not in second
    kept = json.loads(Path(download("json", session)).read_text())["answers"]
    assert [a["heard_seconds"] for a in kept] == [early.seconds, session.run.memory.seconds]


def test_a_chosen_model_is_the_visitors_own(
    tiny_speech_model: SpeechModel, tiny_checkpoint: Path, recording: Path
) -> None:
    handlers = Handlers(tiny_speech_model, 1.0, can_choose=True)
    mine, others = Session(tiny_speech_model), Session(tiny_speech_model)
    Endpoints(handlers).listen(str(recording), "8", mine)
    model, _ = handlers.choose(str(tiny_checkpoint), "torch", mine, None)
    assert mine.model is model is not tiny_speech_model and mine.run.memory is None
    assert handlers.choice.load(str(tiny_checkpoint), "torch") is model
    assert others.model is tiny_speech_model
    Endpoints(handlers).listen(str(recording), "8", mine)
    with pytest.raises(gr.Error, match="no checkpoint folder"):
        handlers.choose("/nowhere", "torch", mine, None)
    assert mine.model is model and mine.run.memory is not None


def test_a_public_page_loads_no_other_model(tiny_speech_model: SpeechModel, tiny_checkpoint: Path) -> None:
    with pytest.raises(PermissionError):
        Handlers(tiny_speech_model, 1.0).choice.load(str(tiny_checkpoint), "torch")
