"""The paper's configuration: its shape from the published ones, and its whole recipe on a tiny random copy of that shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from converters import whisper_qwen2
from converters.__main__ import main as convert
from speech_xl.checkpoints import check_checkpoint
from speech_xl.config import SAMPLING_RATE
from speech_xl.config_file import load_config
from tests import families
from tests.tiny import write_sound
from tests.tiny_training import metrics, tensors, write_lines
from training.__main__ import main
from training.recipe import load_recipe

PAPER = Path(__file__).parent.parent / "recipes" / "paper"
WHISPER_SMALL = {
    "model_type": "whisper",
    "num_mel_bins": 80,
    "d_model": 768,
    "encoder_layers": 12,
    "encoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "max_source_positions": 1500,
    "activation_function": "gelu",
    "scale_embedding": False,
}
QWEN = {  # Qwen2.5-7B-Instruct's config.json
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
    "hidden_act": "silu",
    "use_sliding_window": False,
}


def test_its_shape_is_what_the_converter_makes_of_the_published_configurations() -> None:
    stored = frozenset({"decoder:lm_head.weight"})
    made = whisper_qwen2.translate({"audio_config": WHISPER_SMALL, "text_config": QWEN}, stored)
    ours = load_config(PAPER)
    assert (ours.encoder, ours.adapter, ours.decoder) == (made.encoder, made.adapter, made.decoder)
    assert ours.encoder.window_frames / 2 == 50 * 30  # 50 Hz
    assert 1 / ours.seconds_per_token == 12.5
    sst = json.loads((PAPER / "settings.json").read_text())["sst"]
    assert sst == {
        "interval": ours.sst.interval,
        "ratios": list(ours.sst.ratios),
        "default_ratio": ours.sst.default_ratio,
    }
    stages = load_recipe(PAPER / "paper.json").stages
    assert [s.kind for s in stages] == ["alignment", "answering", "summarization"]
    assert all(s.max_tokens == ours.tokens_for(5 * 60 * SAMPLING_RATE) for s in stages)
    assert stages[2].ratios == ours.sst.ratios


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Windows of 1,500 positions, stacks of four, seven query heads for one key, biases, a head of its own: all narrow."""
    small = {
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "max_source_positions": 1500,
    }
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=50,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            pad_token_id=1,
            bos_token_id=1,
            eos_token_id=1,
            decoder_start_token_id=1,
            num_mel_bins=80,
            **small,
        )
    )
    families.randomize(whisper, 0).save_pretrained(tmp_path / "whisper")
    decoder = families.qwen2(
        tmp_path / "decoder", hidden_size=56, num_attention_heads=7, num_key_value_heads=1, tie_word_embeddings=False
    )
    words = ["--hf-path", str(tmp_path / "whisper"), "--decoder", str(decoder), "--mlx-path", str(tmp_path / "model")]
    assert convert([*words, "--with-sst", "--settings", str(PAPER / "settings.json")]) == 0
    return tmp_path / "model"


def test_a_tiny_copy_takes_the_whole_recipe(tiny: Path, tmp_path: Path) -> None:
    config, paper = check_checkpoint(tiny), load_config(PAPER)
    assert (config.seconds_per_token, config.tokens_per_window) == (paper.seconds_per_token, paper.tokens_per_window)
    assert config.adapter.stack == paper.adapter.stack and config.sst == paper.sst
    for name in ("attention_bias", "attention_output_bias", "mlp_bias", "tie_word_embeddings"):
        assert getattr(config.decoder, name) == getattr(paper.decoder, name)
    write_sound(tmp_path / "a.wav", 33.0)
    write_sound(tmp_path / "b.wav", 2.0, seed=1)
    lines = [
        {"audio": "a.wav", "text": "a b c d e f g", "question": "what?", "answer": "a b"},
        {"audio": "b.wav", "text": "a b", "question": "what?", "answer": "b"},
    ]
    recipe = json.loads((PAPER / "paper.json").read_text())
    for stage in recipe["stages"]:
        stage |= {"steps": 1, "batch": 2, "log_every": 1, "validate_every": 1}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe))
    data, out = write_lines(tmp_path / "l.jsonl", lines), tmp_path / "out"
    command = ["--model", str(tiny), "--data", str(data), "--output", str(out), "--recipe", str(path)]
    assert main(command) == 0
    assert check_checkpoint(out / "model").sst.trained
    before, after = tensors(tiny), tensors(out / "model")
    moved = {n for n in before if not torch.equal(before[n].float(), after[n].float())}
    assert {"decoder.sst_embedding", "speech.adapter.linear_1.weight"} <= moved
    assert any("sst_k_proj" in n for n in moved) and not any(
        "speech.encoder" in n or "embed_tokens" in n for n in moved
    )
    for stage in recipe["stages"]:
        assert np.isfinite(list(metrics(out, stage["name"])["loss"].values())).all()
    assert (out / "adapter" / "adapter_config.json").is_file()


def test_its_plan_needs_no_weights(capsys: pytest.CaptureFixture) -> None:
    assert main(["--plan", "--model", str(PAPER), "--recipe", str(PAPER / "paper.json"), "--gpus", "1", "4", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 * 5 and all(line.endswith("fits") for line in lines[1:])
