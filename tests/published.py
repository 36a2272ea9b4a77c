"""Tiny random models in the forms that base parts are published in: model.bin of CTranslate2, and GGUF."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import quants
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperForConditionalGeneration

from converters.chat_template import byte_letters
from tests.families import ENCODER, randomize

WORDS = [*"abcdefghijkl"]
SPECIALS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|transcribe|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
TIMESTAMPS = 4  # ids behind the tokenizer's own, as in Whisper's
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}
CODES = {torch.float32: 0, torch.float16: 4}


def whisper_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(BPE({word: i for i, word in enumerate(WORDS)}, []))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def whisper_model(seed: int = 0) -> WhisperForConditionalGeneration:
    size = len(WORDS) + len(SPECIALS) + TIMESTAMPS
    return randomize(
        WhisperForConditionalGeneration(
            WhisperConfig(
                vocab_size=size,
                decoder_layers=2,
                decoder_attention_heads=2,
                decoder_ffn_dim=32,
                max_target_positions=24,
                pad_token_id=1,
                bos_token_id=1,
                eos_token_id=1,
                decoder_start_token_id=1,
                **ENCODER,
            )
        ),
        seed,
    )


def fused(state: dict[str, torch.Tensor], layers: dict[str, int]) -> dict[str, torch.Tensor]:
    """A Whisper model's tensors under CTranslate2's names, projections joined and keys' biases zero."""
    made: dict[str, torch.Tensor] = {"decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"]}

    def joined(name: str, parts: list[str]) -> None:
        made[f"{name}/weight"] = torch.cat([state[f"{part}.weight"] for part in parts])
        rows = [state.get(f"{part}.bias", torch.zeros(len(state[f"{part}.weight"]))) for part in parts]
        made[f"{name}/bias"] = torch.cat(rows)

    def norm(name: str, theirs: str) -> None:
        made[f"{name}/gamma"], made[f"{name}/beta"] = state[f"{theirs}.weight"], state[f"{theirs}.bias"]

    for conv in ("conv1", "conv2"):
        joined(f"encoder/{conv}", [f"model.encoder.{conv}"])
    for side, count in layers.items():
        made[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(count):
            here, there = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            joined(f"{here}/self_attention/linear_0", [f"{there}.self_attn.{p}_proj" for p in "qkv"])
            joined(f"{here}/self_attention/linear_1", [f"{there}.self_attn.out_proj"])
            norm(f"{here}/self_attention/layer_norm", f"{there}.self_attn_layer_norm")
            if side == "decoder":
                joined(f"{here}/attention/linear_0", [f"{there}.encoder_attn.q_proj"])
                joined(f"{here}/attention/linear_1", [f"{there}.encoder_attn.{p}_proj" for p in "kv"])
                joined(f"{here}/attention/linear_2", [f"{there}.encoder_attn.out_proj"])
                norm(f"{here}/attention/layer_norm", f"{there}.encoder_attn_layer_norm")
            joined(f"{here}/ffn/linear_0", [f"{there}.fc1"])
            joined(f"{here}/ffn/linear_1", [f"{there}.fc2"])
            norm(f"{here}/ffn/layer_norm", f"{there}.final_layer_norm")
    return made


def write_model_bin(path: Path, model: WhisperForConditionalGeneration, dtype: torch.dtype = torch.float16) -> Path:
    """CTranslate2's binary version 6 of a Whisper model, with its tokenizer beside it."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    layers = {"encoder": model.config.encoder_layers, "decoder": model.config.decoder_layers}
    variables = {name: (CODES[dtype], t.to(dtype).numpy()) for name, t in fused(model.state_dict(), layers).items()}
    for side in layers:
        variables[f"{side}/num_heads"] = (2, np.array(getattr(model.config, f"{side}_attention_heads"), np.int16))
    data = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, (code, array) in variables.items():
        data += string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", code, array.nbytes) + array.tobytes()
    data += struct.pack("<I", 1) + string("decoder/projection/weight") + string("decoder/embeddings/weight")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    whisper_tokenizer().save(str(path.parent / "tokenizer.json"))
    return path


def text_tokens() -> tuple[list[str], list[int]]:
    """-> (tokens, their GGUF types): three control tokens and all bytes' letters."""
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(byte_letters().values())
    return [*controls, *letters, "th", "the"], [3] * len(controls) + [1] * (len(letters) + 2)


def llama_model(seed: int = 1, **changes: object) -> LlamaForCausalLM:
    config = (
        {"vocab_size": len(text_tokens()[0]), "tie_word_embeddings": True, "rope_theta": 50_000.0} | LLAMA | changes
    )
    return randomize(LlamaForCausalLM(LlamaConfig(**config)), seed)


def permuted(numbers: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of q and k rows (convert_hf_to_gguf.py's LlamaModel.permute)."""
    halves = numbers.reshape(heads, 2, numbers.shape[0] // heads // 2, *numbers.shape[1:])
    return halves.swapaxes(1, 2).reshape(numbers.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, kind: str = "F16", pre: str = "smollm") -> Path:
    """A GGUF file as llama.cpp's converter writes it: matrices of `kind`, norms in F32."""
    config, (tokens, kinds) = model.config, text_tokens()
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(2)
    quantization = gguf.GGMLQuantizationType[kind]
    short = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
    short |= {f"self_attn.{p}_proj": f"attn_{p}" for p in "qkv"} | {
        f"mlp.{p}_proj": f"ffn_{p}" for p in ("gate", "up", "down")
    }
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name in top:
            theirs = top[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            theirs = f"blk.{layer}.{short[rest.removesuffix('.weight')]}.weight"
        if "attn_q" in theirs or "attn_k" in theirs:
            tensor = permuted(tensor, config.num_attention_heads if "attn_q" in theirs else config.num_key_value_heads)
        numbers = np.ascontiguousarray(tensor.numpy())
        if tensor.dim() == 1:
            writer.add_tensor(theirs, numbers)
        else:
            writer.add_tensor(theirs, quants.quantize(numbers, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
