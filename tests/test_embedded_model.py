"""The embedded model: it is whole, it is small, and it answers right about speech it was never trained on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import soundfile as sf

from evaluation.metrics import normalise
from recipes.order_desk.corpus import VALIDATION_VOICE, load_human, split_human
from recipes.order_desk.grammar import NOT_MENTIONED
from recipes.order_desk.recordings import build_recording
from speech_xl.checkpoints import EMBEDDED_FOLDER, check_checkpoint
from speech_xl.config import SAMPLING_RATE
from speech_xl.conversation import Listening, ask
from speech_xl.model import SpeechModel

ROOT = Path(__file__).parent.parent
HUMAN = Path(os.environ.get("SPEECH_XL_HUMAN_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    return SpeechModel.load("nano", backend="torch")


def test_it_is_whole_and_small() -> None:
    config = check_checkpoint(EMBEDDED_FOLDER)
    assert config.sst.trained and config.dtype == "float16" and config.description
    assert (EMBEDDED_FOLDER / "model.safetensors").stat().st_size <= 20 * 10**6
    card = (EMBEDDED_FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for credit in ("Picovoice", "Free Spoken Digit Dataset", "espeak-ng", "flite"):
        assert credit in card


def test_it_answers_its_example(model: SpeechModel) -> None:
    listening = Listening(model, ROOT / "recipes" / "order_desk" / "example.ogg")
    list(listening)
    orders = json.loads((ROOT / "recipes" / "order_desk" / "example.json").read_text())["orders"]
    right = []
    for order in orders[:12]:
        asking = ask(model, listening.memory, f"What drink is order {order['number']}?")
        list(asking)
        right.append(asking.answer.answer == order["slots"]["coffeeDrink"])
    assert sum(right) / len(right) >= FLOOR_EXAMPLE


FLOOR_EXAMPLE, FLOOR_MENTIONED, FLOOR_SILENT, FLOOR_EVIDENCE = 0.8, 0.7, 0.8, 0.9


@pytest.mark.skipif(not HUMAN.exists(), reason="the human clips are not here (SPEECH_XL_HUMAN_DATA)")
def test_it_answers_people_it_never_heard(model: SpeechModel, tmp_path: Path) -> None:
    _, orders, _, digits = split_human(*load_human(HUMAN, trim=False), VALIDATION_VOICE)
    mentioned, silent, found = [], [], []
    for seed in range(3):
        recording = build_recording(orders, digits, numbered=10, plain=0, seed=seed)
        path = tmp_path / "desk.wav"
        sf.write(path, recording.samples, SAMPLING_RATE)
        listening = Listening(model, path, ratio=8)
        list(listening)
        for question in recording.questions:
            asking = ask(model, listening.memory, question.text)
            list(asking)
            is_right = normalise(asking.answer.answer) == normalise(question.answer)
            (silent if question.answer == NOT_MENTIONED else mentioned).append(is_right)
            if is_right and question.answer != NOT_MENTIONED:
                strongest = asking.answer.evidence[0]
                found.append(strongest.start < question.end and strongest.end > question.start)
    assert sum(mentioned) / len(mentioned) >= FLOOR_MENTIONED
    assert sum(silent) / len(silent) >= FLOOR_SILENT
    assert sum(found) / len(found) >= FLOOR_EVIDENCE
