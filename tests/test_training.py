"""Training: the same seed gives the same run, killed or not; every stage moves its weights; export is a checkpoint."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from speech_xl.config import SAMPLING_RATE, load_config
from speech_xl.schedule import memory_slots
from torch_backend.training import grammar
from torch_backend.training.alignment import Ruler, SpeechData, lay_tape, self_label, windows_of
from torch_backend.training.alignment import Utterance as TapeUtterance
from torch_backend.training.answering import Phase, forward, make_batch
from torch_backend.training.corpus import Clip
from torch_backend.training.desk import UNNUMBERED, build_sample, collate
from torch_backend.training.encoded import EncodingPlan, build_pool, load_pool, save_pool
from torch_backend.training.muon import orthogonalise
from torch_backend.training.recipe import RecipeError, load_recipe
from torch_backend.training.runner import Runner
from torch_backend.training.text import spoken_ids

NANO = Path(__file__).parent.parent / "torch_backend" / "training" / "configs" / "nano.json"


def tiny_recipe(folder: Path) -> Path:
    """Every kind of stage on a model small enough for a test."""
    data = json.loads(NANO.read_text())
    data |= {"save_every_seconds": 0, "vocab_size": 512}
    data["encodings"] = {"encoded": {"human_order_copies": 1, "synthetic_orders": 6, "human_numbers": 0,
                                     "synthetic_numbers": 100, "strength": 0.3}}  # fmt: skip
    data["model"]["encoder"] |= {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
    }
    data["model"]["adapter"]["hidden_size"] = 16
    data["model"]["evidence_layers"] = [1]
    data["model"]["decoder"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
                                 "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}  # fmt: skip
    answering = {"kind": "answering", "lr": 0.01, "log_every": 2}
    phase = {"steps": 4, "batch": 2, "numbered": [1, 2], "questions": 3}
    data["stages"] = [
        {"name": "encoder", "kind": "alignment", "lr": 0.01, "log_every": 2,
         "phases": [{"name": "a", "steps": 2, "synthetic": 2, "human": 0, "strength": 0.5}]},
        answering | {"name": "reader", "clips": "pseudo", "phases": [phase | {"name": "raw"}]},
        answering | {"name": "join", "clips": "encoded", "initialise_sst": True,
                     "phases": [phase | {"name": "sst", "ratios": [None, 4, 16], "longest_skip": 9, "thin": 0.9}]},
    ]  # fmt: skip
    path = folder / "recipe.json"
    path.write_text(json.dumps(data))
    return path


def noise_clips(count: int) -> SpeechData:
    """Clips of noise: what is said does not matter to how training runs."""
    rng, generator = random.Random(0), np.random.default_rng(0)
    orders, digits = [], []
    for i in range(count):
        sound = (generator.standard_normal(SAMPLING_RATE) * 3000).astype(np.int16)
        slots = grammar.sample_slots(rng)
        orders.append(Clip(sound, tuple(grammar.words_of(slots, rng)), slots, None, "v", "tts", f"order {i}"))
        digits.append(Clip(sound[:6000], (grammar.DIGIT_WORDS[i % 10],), None, i % 10, "v", "tts", f"digit {i}"))
    return SpeechData(orders, digits, [], [])


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    made = Runner(load_recipe(tiny_recipe(tmp_path)), tmp_path / "runs", tmp_path / "cache", None)
    heard = noise_clips(10), SpeechData([], [], [], [])
    made.speech = lambda trim: heard
    return made


def test_all_stages_run_and_the_export_is_a_whole_checkpoint(runner: Runner, tmp_path: Path) -> None:
    before = {name: t.clone() for name, t in runner.model.state_dict().items()}
    for stage in runner.recipe.stages:
        runner.run(stage)
    after = runner.model.state_dict()
    moved = {name for name, t in after.items() if not torch.equal(t, before[name])}
    assert {"speech.encoder.conv1.weight", "speech.adapter.linear_1.weight"} <= moved
    assert {"decoder.layers.0.self_attn.sst_k_proj.weight", "decoder.sst_embedding", "decoder.norm.weight"} <= moved
    assert "decoder.embed_tokens.weight" not in moved  # the ruler that alignment measured speech with

    runner.export(tmp_path / "exported")
    config = load_config(tmp_path / "exported")
    assert config.dtype == "float16"
    assert sorted(p.name for p in (tmp_path / "exported").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip
    assert not (tmp_path / "exported.partial").exists()
    rows = (tmp_path / "runs" / "join" / "metrics.csv").read_text().splitlines()
    assert any(",loss," in row for row in rows)


@pytest.mark.parametrize("name", ["encoder", "reader"])
def test_a_killed_stage_resumes_to_the_same_weights(runner: Runner, tmp_path: Path, name: str) -> None:
    stage = runner.recipe.stage(name)
    runner.run(stage)
    whole = {k: v.clone() for k, v in runner.model.state_dict().items()}

    again = Runner(runner.recipe, tmp_path / "killed", tmp_path / "cache", None)
    again.speech = runner.speech
    phase = stage.phases[0]
    half = replace(stage, phases=(phase, replace(phase, name="never reached")))
    calls = 0

    def kill_after_first_saves(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyboardInterrupt

    from torch_backend.training import state

    original = state.Run.log
    state.Run.log = kill_after_first_saves  # the first log comes after half of the steps
    try:
        with pytest.raises(KeyboardInterrupt):
            again.run(replace(half, phases=(phase,)))
    finally:
        state.Run.log = original
    fresh = Runner(runner.recipe, tmp_path / "killed", tmp_path / "cache", None)
    fresh.speech = runner.speech
    fresh.run(stage)
    for key, value in fresh.model.state_dict().items():
        assert torch.equal(value, whole[key]), key


def test_a_step_is_a_function_of_seed_and_step_alone(runner: Runner) -> None:
    stage = runner.recipe.stage("reader")
    pool, _ = runner._pools(stage)
    first = make_batch(stage, stage.phases[0], 3, pool, runner.tokenizer, 64)
    make_batch(stage, stage.phases[0], 4, pool, runner.tokenizer, 64)
    again = make_batch(stage, stage.phases[0], 3, pool, runner.tokenizer, 64)
    assert np.array_equal(first.speech, again.speech) and np.array_equal(first.text_ids, again.text_ids)


def test_every_length_comes_in_steps_of_one_size(runner: Runner) -> None:
    pool, _ = runner._pools(runner.recipe.stage("reader"))
    phase = Phase("any", 1, batch=6, numbered=(2, 12), questions=4, total_orders=12)
    lengths = set()
    for step in range(30):
        batch = make_batch(runner.recipe.stage("reader"), phase, step, pool, runner.tokenizer, 64)
        orders = max(len(np.unique(row[row >= 0])) for row in batch.numbers)  # absent ones are asked for, too
        lengths.add(len(batch.kinds))
        assert len(batch.kinds) <= 6 and orders <= 12 + 4
        assert 12 < sum(map(len, batch.kinds)) <= 24
    assert {1, 6} < lengths


def test_long_recordings_hold_orders_without_a_number(runner: Runner) -> None:
    pool, _ = runner._pools(runner.recipe.stage("reader"))
    phase = Phase("hay", 1, batch=1, numbered=(110, 110), questions=40, total_orders=110, plain_share=0.9)
    numbered = []
    for step in range(4):
        batch = make_batch(runner.recipe.stage("reader"), phase, step, pool, runner.tokenizer, 64)
        assert (batch.numbers == UNNUMBERED).any()
        numbered.append(len(np.unique(batch.numbers[(batch.numbers >= 0) & (batch.numbers < UNNUMBERED)])))
    assert min(numbered) < 70 < max(numbered) <= 100  # and perhaps one that is absent


def test_a_uniform_recording_keeps_one_ratio(runner: Runner) -> None:
    pool, _ = runner._pools(runner.recipe.stage("reader"))
    sample = build_sample(random.Random(1), pool, 6, 0, 1, 0.0)
    allowed = {None: 0} | {r: memory_slots(len(sample.speech), 64, r) for r in (4, 16)}
    made = {collate([sample], runner.tokenizer, 64, list(allowed), 1, i, uniform=1.0).ssts for i in range(30)}
    assert made == set(allowed.values())
    mixed = {collate([sample], runner.tokenizer, 64, list(allowed), 1, i).ssts for i in range(30)}
    assert mixed - made


def test_padding_in_a_batch_changes_no_sample(runner: Runner) -> None:
    pool, _ = runner._pools(runner.recipe.stage("reader"))
    rng = random.Random(5)
    samples = [build_sample(rng, pool, n, 1, 2, 0.5) for n in (1, 4)]
    together = collate(samples, runner.tokenizer, 64, (4,), 1, 0)
    with torch.inference_mode():
        logits, _, owner = forward(runner.model.decoder, together)
        for i, sample in enumerate(samples):
            alone, _, _ = forward(runner.model.decoder, collate([sample], runner.tokenizer, 64, (4,), 1, i))
            torch.testing.assert_close(logits[owner[:, 0] == i], alone, atol=1e-4, rtol=1e-4)


def test_encoded_clips_survive_the_disk(runner: Runner, tmp_path: Path) -> None:
    ruler = Ruler(runner.tokenizer, runner.model.decoder.embed_tokens.weight)
    plan = EncodingPlan(1, 4, human_numbers=0, synthetic_numbers=100, strength=0.2)
    pool = build_pool(runner.model.speech, ruler, runner.tokenizer, runner.speech(trim=True)[0], plan, seed=1)
    save_pool(pool, tmp_path / "clips.safetensors")
    loaded = load_pool(tmp_path / "clips.safetensors", human=0.5)
    assert [c.words for c in loaded.synthetic_orders] == [c.words for c in pool.synthetic_orders]
    assert sorted(loaded.synthetic_numbers) == list(range(100))
    assert all(
        np.array_equal(a.vectors, b.vectors)
        for a, b in zip(loaded.synthetic_orders, pool.synthetic_orders, strict=True)
    )


def test_tape_spans_cover_what_was_laid_on_it(runner: Runner) -> None:
    config = runner.recipe.model
    sounds = [TapeUtterance(np.ones(n, np.float32), []) for n in (5000, 20_000, 8000)]
    tape = lay_tape(config, sounds, random.Random(0))
    spans = tape.spans
    assert tape.samples.sum() == 33_000
    assert spans[0].start == 0 and all(a.stop == b.start for a, b in pairwise(spans))
    windows = windows_of(config, tape.samples)
    assert len(windows) * config.tokens_per_window >= config.tokens_for(len(tape.samples))


def test_self_label_chooses_the_words_that_the_encoder_hears(runner: Runner) -> None:
    slots = {"coffeeDrink": "latte", "size": "small", "roast": "dark roast"}
    words = grammar.candidates(slots)[7]
    ids = spoken_ids(runner.tokenizer, words)
    embeddings = runner.model.decoder.embed_tokens.weight

    class Parrot(torch.nn.Module):
        """Says the given words whatever it hears."""

        config = runner.recipe.model

        def forward(self, mel: torch.Tensor) -> torch.Tensor:
            said = torch.cat([embeddings[[0]], embeddings[[i for t in ids for i in (t, 0)]]])[None]
            return said.expand(1, -1, -1)

    clip = Clip(np.zeros(SAMPLING_RATE, np.int16), None, slots, None, "p", "human", "x")
    assert self_label(Parrot(), Ruler(runner.tokenizer, embeddings), runner.tokenizer, [clip]) == [words]


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5 and values.max() < 1.5


def test_a_single_digit_is_asked_with_its_zero(runner: Runner) -> None:
    encode = runner.tokenizer.encode
    assert encode("What drink is order 7?").ids == encode("what drink is order 07?").ids
    assert encode("order 47").tokens[-2:] == ["Ġ4", "Ġ7"]


def test_a_recipe_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = tiny_recipe(tmp_path)
    data = json.loads(path.read_text())
    data["stages"][0]["speed"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(RecipeError, match="unknown fields speed"):
        load_recipe(path)
