"""Training on sound: every family of checkpoints takes steps, what the front end makes is kept, CTC aligns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from accelerate import Accelerator

from converters.__main__ import main as convert
from speech_xl import word_reader
from speech_xl.checkpoints import check_checkpoint
from speech_xl.config import SAMPLING_RATE
from speech_xl.config_file import load_config
from speech_xl.prompt import Prompt
from speech_xl.recognition import Word
from tests import families
from tests.tiny import save_checkpoint, sound, tiny_config, write_sound
from tests.tiny_training import hearing_checkpoint, metrics, recipe, tensors, train, write_lines
from torch_backend.backend import Backend
from training import data as data_module
from training import features, hearing
from training.ctc import CTCHead
from training.data import DataError, read_recordings
from training.network import load_network
from training.sound import augment, encoder_windows, read_samples
from training.speech import join_speech

PLAIN = {"lora": {"rank": 2, "alpha": 2}, "steps": 2, "validate_every": 2}
RAW = {"lessons": [{"ratios": ["raw"]}]}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, three recordings."""
    folder = tmp_path_factory.mktemp("spoken")
    write_sound(folder / "a.wav", 2.6)
    write_sound(folder / "b.wav", 1.1, seed=1)
    lines = [
        {"audio": "a.wav", "end": 1.2, "text": "a b c"},
        {"audio": "a.wav", "start": 1.2, "question": "what drink?", "answer": "a"},
        {"audio": "b.wav", "text": "d e", "question": "which?", "answer": "not mentioned"},
    ]
    return write_lines(folder / "l.jsonl", lines)


def qwen2_audio(folder: Path) -> list[str]:
    return [str(families.qwen2_audio(folder / "source"))]


def voxtral(folder: Path) -> list[str]:
    return [str(families.voxtral(folder / "source"))]


def whisper_qwen2(folder: Path) -> list[str]:
    decoder = families.qwen2(folder / "decoder")
    return [str(families.whisper(folder / "source")), "--decoder", str(decoder)]


@pytest.mark.parametrize("family, layout", [(qwen2_audio, "torch"), (voxtral, "mlx"), (whisper_qwen2, "torch")])
def test_every_family_takes_the_three_stages(family, layout: str, spoken: Path, tmp_path: Path) -> None:
    source, *more = family(tmp_path)
    model = tmp_path / "model"
    assert convert(["--hf-path", source, "--mlx-path", str(model), "--to", layout, *more]) == 0
    stages = [
        PLAIN | RAW | {"name": "align", "kind": "alignment", "loss": "ctc", "ctc_classes": 20, "lora": None},
        PLAIN | RAW | {"name": "answer", "kind": "answering"},
        PLAIN | {"name": "first"},
    ]
    out = train(model, tmp_path / "out", recipe(*stages), spoken, spoken)
    config = check_checkpoint(out)
    assert config.layout == layout and config.sst.trained and config.sst.pooled
    before, after = tensors(model), tensors(out)
    moved = {n for n in before if not torch.equal(before[n].float(), after[n].float())}
    assert any("adapter" in n for n in moved) and any("up_proj" in n for n in moved)
    assert not any("speech.encoder" in n or "embed_tokens" in n or "norm" in n for n in moved)
    assert Backend.load(out, config).model is not None
    assert np.isfinite(list(metrics(tmp_path / "out")["loss"].values())).all()


def test_what_the_encoder_made_is_heard_once(spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_checkpoint(tmp_path / "tiny", tiny_config())
    encoded = []
    monkeypatch.setattr(hearing, "encode", lambda tower, s: encoded.append(len(s)) or np.zeros((8, 16), np.float16))
    stages = [PLAIN | RAW | {"name": name, "kind": "alignment", "lora": None} for name in ("one", "two")]
    train(model, tmp_path / "out", recipe(*stages), spoken)
    assert len(encoded) == 3  # recordings, in both stages together
    assert len(list((tmp_path / "out" / "features").glob("*.npy"))) == 3


def test_cached_outputs_are_the_speech_tokens_that_the_backend_hears(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "tiny", tiny_config())
    config = load_config(model)
    path = write_sound(tmp_path / "talk.wav", 3.3)
    (recording,) = read_recordings([write_lines(tmp_path / "l.jsonl", [{"audio": path.name, "text": "a"}])])
    network, _ = load_network(model, config, None, None)
    heard = []
    for changes in ({}, {"augment": 0.1}):
        stage = recipe(RAW | {"kind": "answering"} | changes, sst=None).stages[0]
        ears = hearing.Hearing(
            stage, model, config, Prompt.load(model, config), tmp_path / "cache", Accelerator(cpu=True)
        )
        sample = ears.sample(recording, None, None)
        assert sample.tokens == config.tokens_for(round(3.3 * SAMPLING_RATE)) and (sample.features is None) == bool(
            changes
        )
        speech = join_speech([sample, sample], config)
        windows = speech.windows and tuple(map(torch.from_numpy, speech.windows))
        with torch.inference_mode():
            twice = network.hear(torch.from_numpy(speech.rows), windows)
        torch.testing.assert_close(twice[:, : sample.tokens], twice[:, sample.tokens :])
        heard.append(twice[:, : sample.tokens])
    backend = Backend.load(model, config)
    state = backend.start([])
    mel, positions, tokens = encoder_windows(read_samples(recording), config)
    backend.hear([(state, tokens)], mel, positions)
    torch.testing.assert_close(heard[1], state.queued, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(heard[0], state.queued, atol=5e-2, rtol=1e-2)  # kept in float16


def test_ctc_learns_what_is_said(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "tiny", tiny_config())
    pieces = [sound(0.4, seed=seed) * (0.2 + seed) for seed in range(2)]
    lines = []
    for number, order in enumerate(((0, 1), (1, 0), (0, 0, 1))):
        path = tmp_path / f"{number}.wav"
        sf.write(path, np.concatenate([pieces[i] for i in order]) / 2, SAMPLING_RATE)
        lines.append({"audio": path.name, "text": " ".join("ab"[i] for i in order)})
    data = write_lines(tmp_path / "l.jsonl", lines)
    stage = {
        "kind": "alignment",
        "loss": "ctc",
        "steps": 60,
        "batch": 3,
        "ctc_classes": 8,
        "lora": None,
        "lessons": [{"ratios": ["raw"]}],
        "train": [r"speech\."],
        "augment": 0.2,
        "learning_rates": {".": 0.01},
        "validate_every": 60,
    }
    train(model, tmp_path / "out", recipe(stage, sst=None), data, data)
    found = metrics(tmp_path / "out")
    losses = list(found["loss"].values())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert found["validation/ctc/raw"][60] > 0.5


def test_a_speech_token_that_is_an_embedding_is_sure_of_its_word() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(50, 64) * 0.1 + 0.3
    head = CTCHead(embeddings)
    said = head(embeddings[None, :10], embeddings)
    assert said.shape == (1, 10, 51)
    assert (said.argmax(-1)[0] == torch.arange(1, 11)).all() and said.max(-1).values.exp().min() > 0.9


def test_parts_of_a_file_are_cut_and_a_start_behind_its_end_is_named(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "talk.wav", 7.0)
    whole, _ = sf.read(path, dtype="float32")
    lines = [
        {"audio": path.name, "text": "a", "start": 5.5, "end": 6.25},
        {"audio": path.name, "text": "a", "start": 9},
    ]
    inside, behind = read_recordings([write_lines(tmp_path / "l.jsonl", lines)])
    np.testing.assert_allclose(read_samples(inside), whole[88_000:100_000], atol=1e-6)
    with pytest.raises(DataError, match=r"line 2: .* is 7 s long, .* correct start"):
        read_samples(behind)


def test_augmented_sound_has_the_same_length_and_depends_on_its_seed() -> None:
    samples = sound(1.0)
    once, again, other = (augment(samples, 0.8, seed) for seed in (3, 3, 4))
    assert once.shape == samples.shape and once.dtype == np.float32 and np.isfinite(once).all()
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_words_heard_need_a_recogniser(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "tiny", tiny_config())
    data = write_lines(tmp_path / "l.jsonl", [{"heard": "a b"}])
    with pytest.raises(DataError, match="no recogniser to hear words with; give audio"):
        train(model, tmp_path / "out", recipe(RAW | {"kind": "answering"}), data)


def test_a_recogniser_hears_each_recording_once(spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hearing_checkpoint(tmp_path / "tiny")
    config, recordings = load_config(model), read_recordings([spoken])
    monkeypatch.setattr(
        word_reader, "words_of", lambda found, words, seconds: [Word(f"said{seconds:.1f}", 0.0, seconds)]
    )
    ears = hearing.Hearing(
        recipe().stages[0], model, config, Prompt.load(model, config), tmp_path / "cache", Accelerator(cpu=True)
    )
    heard = [ears.sample(r, None, None).source for r in recordings]
    assert [r.heard for r in heard] == ["said1.2", "said1.4", "said1.1"]
    ears.rest()
    monkeypatch.setattr(features, "load_backend", None)
    assert [ears.sample(r, None, None).source for r in recordings] == heard
    out = train(
        model,
        tmp_path / "out",
        recipe({"steps": 2, "lora": None}),
        write_lines(tmp_path / "l.jsonl", [{"heard": r.heard} for r in heard]),
    )
    assert check_checkpoint(out).sst.trained


def test_ssts_that_only_the_recipe_has_do_not_hinder_hearing(spoken: Path, tmp_path: Path) -> None:
    model = hearing_checkpoint(tmp_path / "plain", sst=None)
    assert check_checkpoint(train(model, tmp_path / "out", recipe({"steps": 1}), spoken)).sst.pooled


def test_another_sound_under_the_same_name_trains_anew(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "tiny", tiny_config())
    data = write_lines(tmp_path / "l.jsonl", [{"audio": "talk.wav", "text": "a b"}])
    chosen = recipe(RAW | {"kind": "answering", "steps": 1, "batch": 1, "train": [r"speech\.adapter"], "lora": None})
    for seed in range(2):
        data_module._file_hash.cache_clear()
        write_sound(tmp_path / "talk.wav", 1.0, seed=seed)
        train(model, tmp_path / "out", chosen, data)
    assert len(list((tmp_path / "out" / "stages").iterdir())) == 2
