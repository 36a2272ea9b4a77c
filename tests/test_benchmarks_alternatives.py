"""The alternatives compute the same: the very weights of a backend, so that only the way of keeping them is compared."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.filling import hear_tokens, text_tokens
from benchmarks.full_cache import family, full_cache
from benchmarks.models import in_memory, load_model, random_backend, tiny
from benchmarks.whisper import read_windows, transcribers, whisper_network
from speech_xl.checkpoints import EMBEDDED_FOLDER
from speech_xl.config_file import load_config
from speech_xl.errors import BackendError, CheckpointError
from speech_xl.model import SpeechModel
from speech_xl.schedule import FixedRatio, Scheduler
from tests.tiny import save_checkpoint, tiny_config, tiny_recognizer_config


def model_of(backend: str, **decoder: object) -> SpeechModel:
    config = dataclasses.replace(tiny(), prompt=load_config(EMBEDDED_FOLDER).prompt)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, **decoder))
    return in_memory(config, random_backend(backend, config, 16))


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("biased", [True, False], ids=["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_full_cache_answers_what_a_raw_memory_does(backend: str, biased: bool, tied: bool) -> None:
    if backend == "mlx":
        pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    model = model_of(backend, attention_bias=biased, tie_word_embeddings=tied)
    theirs, prefix = full_cache(model.backend), list(model.prompt.prefix_ids)
    state = model.backend.start(prefix)
    scheduler = Scheduler(model.interval, FixedRatio(None), len(prefix), horizon=model.horizon)
    ids, question = text_tokens(model, 150), [5, 6, 7]
    hear_tokens(model, state, scheduler, ids)
    for part in (prefix, ids[:100], ids[100:]):
        theirs.hear(part)
    ours = [step.token for step in itertools.islice(model.backend.answer(state, question, scheduler.base), 6)]
    for _ in range(2):  # the first answer leaves nothing behind
        steps = theirs.answer(question)
        assert list(itertools.islice(steps, 6)) == ours
        steps.close()
        assert theirs.bytes() == model.backend.memory_bytes(state)


def test_a_decoder_that_is_neither_qwen2_nor_llama_is_refused() -> None:
    decoder = tiny_config().decoder
    assert family(decoder) == "qwen2"
    assert family(dataclasses.replace(decoder, attention_bias=False)) == "llama"
    with pytest.raises(BackendError, match="neither"):
        family(dataclasses.replace(decoder, mlp_bias=True))


def test_whisper_of_transformers_reads_what_the_recogniser_does(tmp_path: Path) -> None:
    model = SpeechModel.load(str(save_checkpoint(tmp_path / "words", tiny_recognizer_config())), "torch")
    mel = np.random.default_rng(0).normal(0, 1, (3, 80, model.config.encoder.window_frames)).astype(np.float32)
    recognizer = model.config.recognizer
    theirs = read_windows(whisper_network(model), recognizer, torch.from_numpy(mel))
    room = recognizer.max_target_positions - len(recognizer.start_ids)  # ours chooses one more, which is read by nobody
    assert theirs == [reading.ids[:room] for reading in model.backend.recognize(mel)]
    assert any(theirs)


def test_whisper_is_not_compared_where_there_is_no_recogniser() -> None:
    with pytest.raises(CheckpointError, match="no recogniser"):
        transcribers(load_model("random-tiny", "torch"))
