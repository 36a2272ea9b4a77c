"""Invariant 11: torch and MLX give the same logits and tokens, and a memory of one answers the same in the other."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl.backend import choose_backend
from speech_xl.config import ModelConfig
from speech_xl.conversation import Listening, ask
from speech_xl.errors import BackendError
from speech_xl.memory import load_memory, save_memory
from speech_xl.model import SpeechModel
from speech_xl.schedule import whole_pass
from tests.tiny import configs, pooled_of, save_checkpoint, scheduler_of, tiny_config, write_sound

pytest.importorskip("mlx.core", reason="MLX is not installed")
import mlx.core as mx

few = settings(max_examples=8, deadline=None)


def both(config: ModelConfig, folder: str) -> dict[str, SpeechModel]:
    path = str(save_checkpoint(Path(folder) / "model", config))
    return {name: SpeechModel.load(path, name) for name in ("torch", "mlx")}


@few
@given(configs(), st.integers(1, 40), st.lists(st.sampled_from(["raw", 0, 1]), min_size=1, max_size=3))
def test_logits_agree_in_one_masked_pass(config: ModelConfig, tokens: int, drawn: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = both(config, folder)
        listed = tuple(None if r == "raw" else config.sst.ratios[r] for r in drawn)
        passed = whole_pass(2, list(scheduler_of(config, listed, 2).plan_all(tokens)), [3])
        x = (
            np.random.default_rng(0)
            .standard_normal((1, len(passed.mask), config.decoder.hidden_size))
            .astype(np.float32)
        )
        arrays = [x, passed.query_positions[None], passed.key_positions[None], passed.mask[None, None]]
        pooled = pooled_of(config, passed)
        decoder = models["torch"].backend.model.decoder
        with torch.inference_mode():
            ours = decoder.logits(decoder.whole(*map(torch.from_numpy, arrays), passed.sst_rows, pooled)).numpy()

        def on_mlx() -> np.ndarray:
            twin = models["mlx"].backend.model.decoder
            theirs = pooled and tuple(mx.array(p.numpy()) for p in pooled)
            return np.array(twin.logits(twin.whole(*map(mx.array, arrays), passed.sst_rows, theirs)))

        np.testing.assert_allclose(models["mlx"].backend._run(on_mlx), ours, atol=1e-4, rtol=1e-4)


@few
@given(configs(), st.sampled_from([None, 0, 1]))
def test_streams_agree_and_memories_cross(config: ModelConfig, ratio: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = both(config, folder)
        path = write_sound(Path(folder) / "talk.wav", 4.4)
        said, memories = {}, {}
        for name, model in models.items():
            listening = Listening(model, path, None if ratio is None else config.sst.ratios[ratio])
            list(listening)
            memories[name] = listening.memory
            asking = ask(model, listening.memory, "what drink is order 4?", longest=12)
            list(asking)
            said[name] = asking.answer
        arrays = [models[n].backend.export_memory(memories[n].state) for n in models]
        for part in ("keys", "values"):
            np.testing.assert_allclose(arrays[0][part], arrays[1][part], atol=1e-4, rtol=1e-3)
        assert said["torch"].answer == said["mlx"].answer
        for maker, reader in (("torch", "mlx"), ("mlx", "torch")):
            file = Path(folder) / f"{maker}.sxl"
            save_memory(memories[maker], file, models[maker])
            asking = ask(models[reader], load_memory(file, models[reader]), "what drink is order 4?", longest=12)
            list(asking)
            assert asking.answer.answer == said[maker].answer
            assert [e.start for e in asking.answer.evidence] == [e.start for e in said[maker].evidence]


def test_the_mlx_backend_works_from_any_thread(tmp_path: Path) -> None:
    import threading

    model = both(tiny_config(), str(tmp_path))["mlx"]
    path, answers = write_sound(tmp_path / "talk.wav", 2.0), []

    def visit() -> None:
        listening = Listening(model, path)
        list(listening)
        asking = ask(model, listening.memory, "a?", longest=5)
        list(asking)
        answers.append(asking.answer.answer)

    threads = [threading.Thread(target=visit) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 3 and len(set(answers)) == 1


def test_a_missing_mlx_is_one_sentence_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speech_xl.backend.importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install"):
        choose_backend("mlx")
