"""CTranslate2's model.bin: the numbers that transformers has, Whisper's decoder as a recogniser, and damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from converters.ctranslate2 import CTranslate2Model
from speech_xl.checkpoints import check_checkpoint
from tests import families, published
from tests.families import refusal, run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensors_are_those_of_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    model = published.whisper_model()
    found = CTranslate2Model(published.write_model_bin(tmp_path / "model.bin", model, dtype)).tensors()
    expected = {name: t for name, t in model.state_dict().items() if name != "proj_out.weight"}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].whole(), tensor.to(dtype)), name


def test_configuration_comes_from_the_shapes(tmp_path: Path) -> None:
    model = published.whisper_model()
    config = CTranslate2Model(published.write_model_bin(tmp_path / "model.bin", model)).config()
    for name, value in config.items():
        assert value == getattr(model.config, name), name


@pytest.mark.parametrize("source", ["folder", "file", "transformers"])
def test_recognizer_keeps_whispers_decoder(source: str, tmp_path: Path) -> None:
    model, folder, out = published.whisper_model(), tmp_path / "whisper", tmp_path / "out"
    if source == "transformers":
        model.save_pretrained(folder)
        published.whisper_tokenizer().save(str(folder / "tokenizer.json"))
        generation = {"is_multilingual": True, "alignment_heads": [[1, 0]], "suppress_tokens": [2, 3]}
        (folder / "generation_config.json").write_text(json.dumps(generation))
    else:
        published.write_model_bin(folder / "model.bin", model, torch.float32)
    text = published.write_gguf(tmp_path / "tiny.gguf", published.llama_model(), "F32")
    given = folder / "model.bin" if source == "file" else folder
    assert run(given, out, "--decoder", str(text), "--recognizer", "--with-sst") == 0
    config, tensors = check_checkpoint(out), load_file(out / "model.safetensors")
    assert config.adapter is None and not any(".adapter." in name for name in tensors)
    for name, tensor in model.state_dict().items():
        if name.startswith("model.decoder."):
            assert torch.equal(tensors[name.replace("model.decoder.", "speech.recognizer.")], tensor), name
    r, tokenizer = config.recognizer, Tokenizer.from_file(str(out / "recognizer_tokenizer.json"))
    names = [tokenizer.id_to_token(i) for i in r.start_ids]
    # without a generation config, a model of this size is an English one
    language = ["<|en|>", "<|transcribe|>"] if source == "transformers" else []
    assert names == ["<|startoftranscript|>", *language, "<|notimestamps|>"]
    assert (
        tokenizer.id_to_token(r.end_id) == "<|endoftext|>" and tokenizer.id_to_token(r.no_speech_id) == "<|nospeech|>"
    )
    listed = {2, 3} if source == "transformers" else set()
    assert set(r.suppressed_ids) == ({*range(len(published.WORDS), r.vocab_size)} | listed) - {r.end_id}
    assert r.begin_suppressed_ids == (r.end_id,)  # this tokenizer has no blank
    assert r.alignment_heads == (((1, 0),) if source == "transformers" else ((1, 0), (1, 1)))


def test_settings_replace_prompt_and_fresh_ssts(tmp_path: Path) -> None:
    published.write_model_bin(tmp_path / "whisper/model.bin", published.whisper_model())
    text = published.write_gguf(tmp_path / "tiny.gguf", published.llama_model())
    settings = {
        "prompt": {"before_audio": "<|im_start|>", "after_audio": "{question}:", "end_tokens": ["<|im_end|>"]},
        "sst": {"interval": 32, "ratios": [4, 8], "default_ratio": 4, "horizon": 0, "pooled": True},
        "name": "small",
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    more = ("--decoder", str(text), "--recognizer", "--with-sst", "--settings", str(tmp_path / "settings.json"))
    assert run(tmp_path / "whisper", tmp_path / "out", *more) == 0
    config, tensors = check_checkpoint(tmp_path / "out"), load_file(tmp_path / "out/model.safetensors")
    assert not tensors["decoder.layers.1.self_attn.sst_pool"].any()  # pooling starts as none
    assert (config.sst.interval, config.sst.horizon, config.sst.trained) == (32, 0, False)
    assert config.prompt.after_audio == "{question}:" and config.name == "small"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"decoder": {}}, "cannot change decoder"),
        ({"sst": {"interval": 8}}, "lacks ratios"),
        ({"prompt": {"x": 1}}, "unknown"),
    ],
)
def test_settings_that_fit_nothing_are_named(settings: dict, word: str, tmp_path: Path, capsys) -> None:
    published.write_model_bin(tmp_path / "whisper/model.bin", published.whisper_model())
    text = published.write_gguf(tmp_path / "tiny.gguf", published.llama_model())
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    more = ("--decoder", str(text), "--with-sst", "--settings", str(tmp_path / "settings.json"))
    assert word in refusal(capsys, tmp_path / "whisper", tmp_path / "out", *more)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "version":
        data = struct.pack("<I", 77) + data[4:]
    elif how == "kind":
        data = data.replace(b"WhisperSpec", b"MarianmSpec", 1)
    elif how == "cut off":
        data = data[: len(data) // 2]
    else:  # type 1: numbers of 8 bits
        place = data.index(b"decoder/embeddings/weight\0") + len(b"decoder/embeddings/weight\0") + 1 + 8
        rows, columns, _, size = struct.unpack_from("<IIBI", data, place - 8)
        head = data[: place - 8] + struct.pack("<IIBI", rows, 2 * columns, 1, size)
        data = head + data[place + 5 :]
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "word"),
    [("version", "no model.bin"), ("kind", "MarianmSpec"), ("cut off", "cut off"), ("type", "quantized to int8")],
)
def test_damage_is_one_sentence(how: str, word: str, tmp_path: Path, capsys) -> None:
    path = published.write_model_bin(tmp_path / "whisper/model.bin", published.whisper_model())
    damage(path, how)
    text = published.write_gguf(tmp_path / "tiny.gguf", published.llama_model())
    assert word in refusal(capsys, path, tmp_path / "out", "--decoder", str(text))


def test_a_recognizer_needs_its_tokenizer(tmp_path: Path, capsys) -> None:
    path = published.write_model_bin(tmp_path / "whisper/model.bin", published.whisper_model())
    (tmp_path / "whisper/tokenizer.json").unlink()
    text = published.write_gguf(tmp_path / "tiny.gguf", published.llama_model())
    assert "tokenizer.json" in refusal(capsys, path, tmp_path / "out", "--decoder", str(text), "--recognizer")


def test_only_whisper_has_a_recognizer(tmp_path: Path, capsys) -> None:
    source = families.qwen2_audio(tmp_path / "audio")
    assert "--recognizer is for Whisper" in refusal(capsys, source, tmp_path / "out", "--recognizer")
