"""`python -m converters`: layouts, kills, and one sentence with exit code 2 for every bad input."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters import source as source_reader
from speech_xl.checkpoints import check_checkpoint
from speech_xl.model import SpeechModel
from tests import families
from tests.families import all_tensors, drop, edit, refusal, run
from tests.tiny import save_checkpoint, tiny_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.qwen2_audio(tmp_path_factory.mktemp("source") / "tiny-audio")


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A source that a test may break."""
    return Path(shutil.copytree(source, tmp_path / "copied"))


# Layouts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_to_mlx_to_torch_is_bit_for_bit(dtype: str, source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "a", "--dtype", dtype) == 0
    assert run(tmp_path / "a", tmp_path / "b", "--to", "mlx", "--verify") == 0
    assert run(tmp_path / "b", tmp_path / "c", "--to", "torch", "--verify") == 0
    a, b, c = (all_tensors(tmp_path / name) for name in "abc")
    assert b["speech.encoder.conv1.weight"].shape == a["speech.encoder.conv1.weight"].transpose(1, 2).shape
    assert a.keys() == c.keys()
    assert all(torch.equal(a[name], c[name]) and a[name].dtype == c[name].dtype for name in a)
    assert (tmp_path / "a/config.json").read_bytes() == (tmp_path / "c/config.json").read_bytes()
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "c/tokenizer.json").read_bytes()


@pytest.mark.parametrize("bits", ["4", "8"])
def test_packed_weights_are_within_a_step_and_run(bits: str, source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "q", "-q", "--q-bits", bits, "--q-group-size", "32", "--verify") == 0
    config = check_checkpoint(tmp_path / "q")
    assert config.layout == "mlx" and config.quantization == {"group_size": 32, "bits": int(bits)}
    packed = all_tensors(tmp_path / "q")
    name = "decoder.layers.0.self_attn.q_proj"
    assert packed[f"{name}.weight"].dtype == torch.uint32
    assert run(tmp_path / "q", tmp_path / "back", "--to", "torch") == 0
    theirs, back = load_file(source / "model.safetensors"), all_tensors(tmp_path / "back")
    step = packed[f"{name}.scales"].abs().repeat_interleave(32, 1)
    source_weight = theirs["language_model.model.layers.0.self_attn.q_proj.weight"]
    assert ((back[f"{name}.weight"] - source_weight).abs() <= step + 1e-6).all()
    assert SpeechModel.load(str(tmp_path / "q"), "mlx").backend.start([1, 2]) is not None


def test_sst_parameters_start_as_copies(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out", "--with-sst", "--verify") == 0
    config, found = check_checkpoint(tmp_path / "out"), all_tensors(tmp_path / "out")
    assert config.sst is not None and not config.sst.trained
    for part in ("q_proj.weight", "k_proj.bias", "v_proj.weight"):
        layer = "decoder.layers.1.self_attn."
        assert torch.equal(found[f"{layer}sst_{part}"], found[f"{layer}{part}"])
    end = families.tokenizer_of("qwen2_audio").token_to_id("<|im_end|>")
    assert torch.equal(found["decoder.sst_embedding"], found["decoder.embed_tokens.weight"][end])


def test_shards_and_bin_files_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "one") == 0
    sharded = families.qwen2_audio(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    old = Path(shutil.copytree(source, tmp_path / "old"))
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    ancient = Path(shutil.copytree(old, tmp_path / "ancient"))
    state = torch.load(old / "pytorch_model.bin", weights_only=True)
    torch.save(state, ancient / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    for folder in (sharded, old, ancient):
        assert run(folder, tmp_path / f"{folder.name}-out") == 0
        same = (tmp_path / "one/model.safetensors").read_bytes()
        assert (tmp_path / f"{folder.name}-out/model.safetensors").read_bytes() == same


def test_what_is_not_used_is_named_with_a_reason(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["adapter_of_a_stranger.weight"] = torch.ones(4)
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    assert run(copied, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "inv_freq (a table that is computed here)" in out
    assert "adapter_of_a_stranger.weight (no part of this architecture)" in out


def test_no_read_is_larger_than_a_piece(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion's memory is a piece, not a tensor and not a file."""
    assert run(copied, tmp_path / "whole", "-q", "--q-group-size", "32") == 0
    honest, sizes = source_reader.Stored._read, []

    def read(self: source_reader.Stored, start: int, shape: tuple[int, ...]) -> torch.Tensor:
        sizes.append(math.prod(shape) * self.dtype.itemsize)
        return honest(self, start, shape)

    monkeypatch.setattr(source_reader, "PIECE", 4000)
    monkeypatch.setattr(source_reader.Stored, "_read", read)
    assert run(copied, tmp_path / "pieces", "-q", "--q-group-size", "32", "--verify") == 0
    assert max(sizes) <= 4000 < max(t.numel() * 4 for t in load_file(copied / "model.safetensors").values())
    names = ("whole", "pieces")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in names)
    assert one == other


# Sources that cannot be converted


def test_unsupported_architectures_hear_what_is_supported(copied: Path, tmp_path: Path, capsys) -> None:
    edit(copied, model_type="bert")
    said = refusal(capsys, copied, tmp_path / "out")
    assert "bert" in said and "Voxtral" in said and "Qwen2-Audio" in said
    edit(copied, model_type="qwen2_audio", quantization_config={"bits": 4})
    assert "already quantized" in refusal(capsys, copied, tmp_path / "out")


def test_settings_that_the_network_lacks_are_refused(copied: Path, tmp_path: Path, capsys) -> None:
    text = json.loads((copied / "config.json").read_text())["text_config"]
    edit(copied, text_config=text | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}})
    assert "yarn" in refusal(capsys, copied, tmp_path / "out")
    edit(copied, text_config=text | {"hidden_act": "relu"})
    assert "relu" in refusal(capsys, copied, tmp_path / "out")
    edit(copied, text_config=text | {"hidden_size": "wide"})
    assert refusal(capsys, copied, tmp_path / "out")


def test_a_missing_or_misshapen_tensor_is_named(copied: Path, tmp_path: Path, capsys) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    tensors = load_file(copied / "model.safetensors")
    save_file(tensors | {name: torch.ones(3, 5)}, copied / "model.safetensors", {"format": "pt"})
    assert name in (said := refusal(capsys, copied, tmp_path / "out")) and "[3, 5]" in said
    drop(copied, name)
    assert name in refusal(capsys, copied, tmp_path / "out")


def test_half_a_download(copied: Path, tmp_path: Path, capsys) -> None:
    whole = (copied / "model.safetensors").read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (copied / "model.safetensors").write_bytes(whole[:length])
        assert "model.safetensors" in refusal(capsys, copied, tmp_path / "out")
    (copied / "model.safetensors").unlink()
    assert "half" in refusal(capsys, copied, tmp_path / "out")
    (copied / "config.json").unlink()
    assert "config.json" in refusal(capsys, copied, tmp_path / "out")
    assert "There is no folder" in refusal(capsys, tmp_path / "nowhere", tmp_path / "out")


def test_a_shard_that_the_index_names_and_the_folder_lacks(tmp_path: Path, capsys) -> None:
    sharded = families.qwen2_audio(tmp_path / "sharded", max_shard_size="20KB")
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in refusal(capsys, sharded, tmp_path / "out")
    (sharded / "model.safetensors.index.json").unlink()
    assert "half done" in refusal(capsys, sharded, tmp_path / "out")
    index = {"weight_map": {"a": "../../elsewhere.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "refused" in refusal(capsys, sharded, tmp_path / "out")


class Poison:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(kind: str, copied: Path, tmp_path: Path, capsys) -> None:
    (copied / "model.safetensors").unlink()
    poison, path = {"weight": Poison(str(tmp_path / "executed"))}, copied / "pytorch_model.bin"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(poison))
    else:
        torch.save(poison, path, _use_new_zipfile_serialization=kind == "zip")
    assert "refused" in refusal(capsys, copied, tmp_path / "out")
    assert not (tmp_path / "executed").exists()
    path.write_bytes(b"no pickle at all")
    assert refusal(capsys, copied, tmp_path / "out")


def test_options_that_contradict_each_other(source: Path, tmp_path: Path, capsys) -> None:
    assert "--to mlx" in refusal(capsys, source, tmp_path / "out", "-q", "--to", "torch")
    own = save_checkpoint(tmp_path / "own", tiny_config())
    assert "SST parameters already" in refusal(capsys, own, tmp_path / "out", "--with-sst")
    assert "--decoder" in refusal(capsys, source, tmp_path / "out", "--decoder", str(source))
    assert "--decoder" in refusal(capsys, families.whisper(tmp_path / "w"), tmp_path / "out")
    assert run(source, tmp_path / "q", "-q", "--q-group-size", "32") == 0
    assert "already quantized" in refusal(capsys, tmp_path / "q", tmp_path / "out", "-q")
