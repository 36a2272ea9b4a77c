"""The embedded model: it is whole, it is small, and it answers right about speech it was never trained on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import soundfile as sf

from evaluation.metrics import Answered, report
from evaluation.order_desk import build_recording
from speech_xl.checkpoints import EMBEDDED_FOLDER, check_checkpoint
from speech_xl.config import SAMPLING_RATE
from speech_xl.conversation import Listening, ask
from speech_xl.model import SpeechModel
from torch_backend.training.corpus import load_human, split_human
from torch_backend.training.recipe import load_recipe

ROOT = Path(__file__).parent.parent
HUMAN = Path(os.environ.get("SPEECH_XL_HUMAN_DATA", ROOT.parent / "shared" / "data"))
NANO = ROOT / "torch_backend" / "training" / "configs" / "nano.json"


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


def test_its_recipe_is_the_one_in_the_tree() -> None:
    recipe, config = load_recipe(NANO), check_checkpoint(EMBEDDED_FOLDER)
    assert (recipe.model.encoder, recipe.model.decoder, recipe.model.sst) == (
        config.encoder,
        config.decoder,
        config.sst,
    )


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
    _, orders, _, digits = split_human(*load_human(HUMAN, trim=False), load_recipe(NANO).validation_voice)
    answered = []
    for seed in range(3):
        recording = build_recording(orders, digits, numbered=10, plain=0, seed=seed)
        path = tmp_path / "desk.wav"
        sf.write(path, recording.samples, SAMPLING_RATE)
        listening = Listening(model, path, ratio=8)
        list(listening)
        for question in recording.questions:
            asking = ask(model, listening.memory, question.text)
            list(asking)
            evidence = asking.answer.evidence
            strongest = (evidence[0].start, evidence[0].end) if evidence else None
            answered.append(Answered(question, asking.answer.answer, strongest))
    figures = report(answered)
    assert figures["mentioned"] >= FLOOR_MENTIONED
    assert figures["not_mentioned"] >= FLOOR_SILENT
    assert figures["evidence"] >= FLOOR_EVIDENCE
