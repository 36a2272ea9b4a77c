"""Fixtures that every test may use. Frameworks run on one thread: tests are small, threads are not free."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from speech_xl.model import SpeechModel
from tests.tiny import save_checkpoint, tiny_config, write_sound


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in our own layout."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config())


@pytest.fixture(scope="session")
def tiny_speech_model(tiny_checkpoint: Path) -> SpeechModel:
    return SpeechModel.load(str(tiny_checkpoint), "torch")


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven seconds and a bit: several intervals and a ragged tail."""
    return write_sound(tmp_path_factory.mktemp("sound") / "talk.wav", 7.33)
