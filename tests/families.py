"""Tiny random checkpoints as transformers itself saves them, what it computes with them, and converting them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from converters.__main__ import main
from tests.tiny import TOKENIZER

SPECIALS = {
    "qwen2_audio": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"],
    "voxtral": ["<s>", "</s>", "[INST]", "[/INST]", "[BEGIN_AUDIO]", "[AUDIO]"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
ENCODER = {
    "num_mel_bins": 80,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 96,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}


def tokenizer_of(kind: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIALS[kind]])
    return tokenizer


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights large enough that logits depend on everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name or name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def save(model: torch.nn.Module, kind: str, folder: Path, **how: object) -> Path:
    model.save_pretrained(folder, **how)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(kind)).save_pretrained(folder)
    return folder


def qwen2_audio(
    folder: Path, seed: int = 0, text: dict | None = None, audio: dict | None = None, **how: object
) -> Path:
    words = tokenizer_of("qwen2_audio")
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder"} | ENCODER | (audio or {}),
        text_config={"model_type": "qwen2", "vocab_size": words.get_vocab_size()} | TEXT | (text or {}),
        audio_token_index=words.token_to_id("<|AUDIO|>"),
    )
    return save(randomize(Qwen2AudioForConditionalGeneration(config), seed), "qwen2_audio", folder, **how)


def voxtral(folder: Path, seed: int = 0, text: dict | None = None, audio: dict | None = None, **how: object) -> Path:
    words = tokenizer_of("voxtral")
    encoder = {
        "num_mel_bins": 80,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_source_positions": 96,
    }
    config = VoxtralConfig(
        audio_config={"model_type": "voxtral_encoder"} | encoder | (audio or {}),
        text_config={"model_type": "llama", "vocab_size": words.get_vocab_size(), "head_dim": 16} | TEXT | (text or {}),
        audio_token_id=words.token_to_id("[AUDIO]"),
    )
    return save(randomize(VoxtralForConditionalGeneration(config), seed), "voxtral", folder, **how)


def whisper(folder: Path, seed: int = 0, **how: object) -> Path:
    config = WhisperConfig(
        vocab_size=50,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        pad_token_id=1,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=1,
        **ENCODER,
    )
    randomize(WhisperForConditionalGeneration(config), seed).save_pretrained(folder, **how)
    return folder


def qwen2(folder: Path, seed: int = 1, **text: object) -> Path:
    config = Qwen2Config(vocab_size=tokenizer_of("qwen2").get_vocab_size(), **TEXT | text)
    return save(randomize(Qwen2ForCausalLM(config), seed), "qwen2", folder)


def their_logits(folder: Path, mel: np.ndarray, frames: list[int], before: list[int], after: list[int], tokens: int):
    """transformers' logits (V,) behind before, `tokens` speech tokens and after; frames of sound per window."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    features = torch.from_numpy(mel)
    with torch.inference_mode():
        if kind == "voxtral":
            model = VoxtralForConditionalGeneration.from_pretrained(folder).eval()
            ids = torch.tensor([[*before, *[model.config.audio_token_id] * tokens, *after]])
            return model(input_ids=ids, input_features=features).logits[0, -1].numpy()
        model = Qwen2AudioForConditionalGeneration.from_pretrained(folder).eval()
        mask = torch.arange(mel.shape[-1])[None] < torch.tensor(frames)[:, None]
        ids = torch.tensor([[*before, *[model.config.audio_token_id] * tokens, *after]])
        made = model(
            input_ids=ids,
            input_features=features,
            feature_attention_mask=mask.long(),
            attention_mask=torch.ones_like(ids),
        )
        return made.logits[0, -1].numpy()


def run(folder: Path | str, out: Path, *more: str) -> int:
    return main(["--hf-path", str(folder), "--mlx-path", str(out), *more])


def refusal(capsys: pytest.CaptureFixture, folder: Path | str, out: Path, *more: str) -> str:
    """The one sentence of a refused conversion; nothing may be left of it under the output's name."""
    before = sorted(p.name for p in out.iterdir()) if out.is_dir() else None
    capsys.readouterr()
    assert run(folder, out, *more) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    lines = [line for line in streams.err.splitlines() if line and not line.startswith("converting")]
    assert len(lines) == 1 and lines[0].endswith("."), streams.err
    assert (sorted(p.name for p in out.iterdir()) if out.is_dir() else None) == before
    return lines[0]


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
