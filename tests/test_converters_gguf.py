"""GGUF files: the numbers that transformers has, the file's own tokenizer, and one sentence for what is wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

from converters.gguf import GGUFFile
from speech_xl.checkpoints import check_checkpoint
from speech_xl.errors import CheckpointError
from tests import families, published
from tests.families import refusal, run

STEPS = {"F32": 0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2, "Q4_1": 0.2}  # largest rounding of numbers near 1


@pytest.mark.parametrize("kind", STEPS)
def test_tensors_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = published.llama_model()
    found = GGUFFile(published.write_gguf(tmp_path / "tiny.gguf", model, kind)).tensors()
    expected = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        torch.testing.assert_close(found[name].whole(), tensor, rtol=STEPS[kind], atol=STEPS[kind])


def test_rows_read_in_pieces_are_the_whole(tmp_path: Path) -> None:
    for stored in (
        GGUFFile(published.write_gguf(tmp_path / "tiny.gguf", published.llama_model(), "Q8_0")).tensors().values()
    ):
        assert torch.equal(torch.cat(list(stored.pieces(limit=300))), stored.whole())


def test_configuration_is_that_of_transformers(tmp_path: Path) -> None:
    model = published.llama_model(tie_word_embeddings=False)
    config = GGUFFile(published.write_gguf(tmp_path / "tiny.gguf", model)).config()
    for name in (*published.LLAMA, "vocab_size"):
        assert config[name] == getattr(model.config, name), name
    assert config["rope_theta"] == 50_000 and config["model_type"] == "llama" and not config["tie_word_embeddings"]


def test_tokenizer_is_the_files_own(tmp_path: Path) -> None:
    tokenizer = GGUFFile(published.write_gguf(tmp_path / "tiny.gguf", published.llama_model())).tokenizer()
    text = "<|im_start|>then the 1984 cafés\n\tO'Brien's 日本<|im_end|>"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert encoded.tokens[:3] == ["<|im_start|>", "the", "n"]
    assert [token for token in encoded.tokens if token.strip("Ġ").isdigit()] == [*"1984"]


def test_a_whisper_folder_takes_a_gguf_decoder(tmp_path: Path) -> None:
    model = published.llama_model()
    source = published.write_gguf(tmp_path / "tiny.gguf", model, "F32")
    whisper, out = families.whisper(tmp_path / "whisper"), tmp_path / "out"
    assert run(whisper, out, "--decoder", str(source), "--dtype", "float32") == 0
    config, tensors = check_checkpoint(out), load_file(out / "model.safetensors")
    assert config.decoder.rope_theta == 50_000 and config.decoder.rms_norm_eps == 1e-5
    assert config.prompt.end_tokens == ("<|im_end|>", "<|endoftext|>")
    name = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(tensors[f"decoder.{name}"], model.state_dict()[f"model.{name}"])


def test_an_unknown_quantization_is_named(tmp_path: Path, monkeypatch) -> None:
    path = published.write_gguf(tmp_path / "tiny.gguf", published.llama_model(), "Q8_0")
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(CheckpointError, match="quantization Q8_0, which cannot be read"):
        GGUFFile(path).tensors()


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "magic":
        data = b"GGML" + data[4:]
    elif how == "cut off":
        data = data[: len(data) - 2000]
    elif how == "cut in the metadata":
        data = data[:200]
    elif how == "a list without end":
        place = data.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 4 + 4
        data = data[:place] + struct.pack("<Q", 2**60) + data[place + 8 :]
    else:  # the type of a tensor that no version of the library knows
        place = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8
        data = data[:place] + struct.pack("<I", 9999) + data[place + 4 :]
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("magic", "no GGUF file"),
        ("cut off", "cut off"),
        ("cut in the metadata", "cut off"),
        ("a list without end", "damaged"),
        ("type", "unknown quantization"),
    ],
)
def test_damage_is_one_sentence(how: str, word: str, tmp_path: Path, capsys) -> None:
    path = published.write_gguf(tmp_path / "tiny.gguf", published.llama_model())
    damage(path, how)
    whisper = families.whisper(tmp_path / "whisper")
    assert word in refusal(capsys, whisper, tmp_path / "out", "--decoder", str(path))


def test_other_ways_to_cut_words_are_refused(tmp_path: Path, capsys) -> None:
    path = published.write_gguf(tmp_path / "tiny.gguf", published.llama_model(), pre="tekken")
    whisper = families.whisper(tmp_path / "whisper")
    assert "tekken" in refusal(capsys, whisper, tmp_path / "out", "--decoder", str(path))
