"""Numbers: nothing is lost without a word, and files that contradict themselves are refused."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters import source as source_reader
from converters import stream
from converters.source import read_header
from speech_xl.errors import CheckpointError
from tests import families
from tests.families import all_tensors, edit, refusal, run
from tests.tiny import save_checkpoint, tiny_config


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.qwen2_audio(tmp_path_factory.mktemp("source") / "tiny-audio")


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A source that a test may break."""
    return Path(shutil.copytree(source, tmp_path / "copied"))


Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


def change(folder: Path, what: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> Path:
    tensors = load_file(folder / name)
    what(tensors)
    save_file(tensors, folder / name, {"format": "pt"})
    return folder


def to_type(dtype: torch.dtype, part: str = "") -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items() if part in n})


# Types


@pytest.mark.parametrize(
    ("speech", "text", "expected"),
    [
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float16),
    ],
)
def test_mixed_sources_lose_nothing(speech, text, expected, copied: Path, tmp_path: Path, capsys) -> None:
    change(copied, to_type(text))
    change(copied, to_type(speech, "audio_tower"))
    assert run(copied, tmp_path / "out", "--verify") == 0
    assert {t.dtype for t in all_tensors(tmp_path / "out").values()} == {expected}
    theirs = load_file(copied / "model.safetensors")
    found = all_tensors(tmp_path / "out")
    assert torch.equal(found["decoder.layers.0.self_attn.q_proj.weight"], theirs[Q_PROJ].to(expected))
    assert "rounded" not in capsys.readouterr().out
    assert run(copied, tmp_path / "narrow", "--dtype", "bfloat16") == 0
    assert ("rounded to bfloat16" in capsys.readouterr().out) == ({speech, text} != {torch.bfloat16})


def test_our_own_mixed_checkpoints_come_back_bit_for_bit(tmp_path: Path) -> None:
    own = save_checkpoint(tmp_path / "own", tiny_config())
    change(own, to_type(torch.bfloat16, "decoder"))
    change(own, to_type(torch.float16, "adapter"))
    assert run(own, tmp_path / "mlx", "--to", "mlx") == 0
    assert run(tmp_path / "mlx", tmp_path / "back", "--to", "torch", "--verify") == 0
    before, after = all_tensors(own), all_tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(before[n].dtype == after[n].dtype and torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize(
    ("stored", "number", "dtype", "words"),
    [
        (torch.float32, 1e5, "float16", "use --dtype bfloat16"),
        (torch.float32, 3.4028234e38, "bfloat16", "use --dtype float32"),
        (torch.float32, math.nan, "float32", "not finite"),
        (torch.bfloat16, math.inf, "float16", "not finite"),
    ],
)
@pytest.mark.parametrize("more", [(), ("-q", "--q-group-size", "32")])
def test_numbers_that_the_output_cannot_hold(stored, number, dtype, words, more, copied, tmp_path, capsys) -> None:
    change(copied, to_type(stored))
    change(copied, lambda tensors: tensors[Q_PROJ].view(-1)[:1].fill_(number))
    said = refusal(capsys, copied, tmp_path / "out", "--dtype", dtype, *more)
    assert "decoder.layers.0.self_attn.q_proj.weight" in said and words in said
    assert not (tmp_path / "out.partial").exists()


# Quantized sources


@pytest.mark.parametrize("place", ["decoder", "text_config"])
def test_quantized_parts_are_refused(place: str, copied: Path, tmp_path: Path, capsys) -> None:
    method = {"quantization_config": {"quant_method": "fp8"}}
    if place == "text_config":
        edit(copied, text_config=json.loads((copied / "config.json").read_text())["text_config"] | method)
        assert "already quantized" in refusal(capsys, copied, tmp_path / "out")
        return
    qwen2 = families.qwen2(tmp_path / "qwen2")
    edit(qwen2, **method)
    said = refusal(capsys, families.whisper(tmp_path / "w"), tmp_path / "out", "--decoder", str(qwen2))
    assert str(qwen2) in said and "already quantized" in said


def test_eight_bit_floats_are_refused(copied: Path, tmp_path: Path, capsys) -> None:
    change(copied, to_type(torch.float8_e4m3fn, "q_proj"))
    assert "quantized" in refusal(capsys, copied, tmp_path / "out")


def test_packed_tensors_are_checked(source: Path, tmp_path: Path, capsys) -> None:
    assert run(source, tmp_path / "packed", "-q", "--q-group-size", "32") == 0
    base = "decoder.layers.0.mlp.up_proj"
    changes = {
        f"{base}.scales": lambda t: t.update({f"{base}.scales": t[f"{base}.scales"][:1]}),
        f"{base}.biases": lambda t: t.pop(f"{base}.biases"),
        f"{base}.weight": lambda t: t.update({f"{base}.weight": t[f"{base}.weight"].view(torch.float32)}),
        f"tensor {base}.biases": lambda t: t.update({f"{base}.biases": t[f"{base}.biases"].to(torch.int32)}),
    }
    for name, what in changes.items():
        broken = Path(shutil.copytree(tmp_path / "packed", tmp_path / "broken", dirs_exist_ok=True))
        assert name in refusal(capsys, change(broken, what), tmp_path / "out", "--to", "torch")
    broken = Path(shutil.copytree(tmp_path / "packed", tmp_path / "broken", dirs_exist_ok=True))
    edit(broken, quantization={"group_size": 64, "bits": 4})
    assert "scales" in refusal(capsys, broken, tmp_path / "out", "--to", "torch")


def test_packed_words_are_unpacked_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, source, tmp_path: Path) -> None:
    assert run(source, tmp_path / "packed", "-q", "--q-group-size", "32") == 0
    honest, sizes = stream.unpack, []
    monkeypatch.setattr(stream, "WORDS", 64)
    monkeypatch.setattr(stream, "unpack", lambda words, *more: (sizes.append(words.nbytes), honest(words, *more))[1])
    assert run(tmp_path / "packed", tmp_path / "out", "--to", "torch", "--verify") == 0
    assert max(sizes) <= 64


# Files that contradict themselves or each other


def test_one_name_in_two_shards(tmp_path: Path, capsys) -> None:
    folder = families.qwen2_audio(tmp_path / "sharded", max_shard_size="20KB")
    shards = sorted((path.name for path in folder.glob("*.safetensors")), key=lambda n: -len(load_file(folder / n)))
    name = next(iter(load_file(folder / shards[0])))  # of the shard with the most tensors
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    moved = index | {"weight_map": index["weight_map"] | {name: shards[1]}}
    path.write_text(json.dumps(moved))
    assert name in (said := refusal(capsys, folder, tmp_path / "out")) and shards[0] in said and shards[1] in said
    path.write_text(json.dumps(index))
    change(folder, lambda tensors: tensors.update({name: torch.ones(2)}), shards[1])
    assert name in (said := refusal(capsys, folder, tmp_path / "out")) and shards[0] in said and shards[1] in said


def test_files_that_are_not_read_are_said(copied: Path, tmp_path: Path, capsys) -> None:
    save_file({"stray.weight": torch.ones(3)}, copied / "extra.safetensors")
    assert run(copied, tmp_path / "out") == 0
    assert "not read: extra.safetensors" in capsys.readouterr().out
    sharded = families.qwen2_audio(tmp_path / "sharded", max_shard_size="20KB")
    save_file({"stray.weight": torch.ones(3)}, sharded / "model-00099-of-00099.safetensors")
    assert run(sharded, tmp_path / "other") == 0
    assert "not read: model-00099-of-00099.safetensors (not in the index" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "first", "last"),
    [([2], 0, 8), ([2], 12, 20), ([2.0], 8, 16), ([-1, -2], 8, 16), ([True, 2], 8, 16), (["2"], 8, 16)],
    ids=["overlap", "hole", "fraction", "negative", "truth", "text"],
)
def test_headers_that_are_no_safetensors(shape: list, first: int, last: int, tmp_path: Path) -> None:
    entries = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": shape, "data_offsets": [first, last]},
    }
    header, path = json.dumps(entries).encode(), tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(max(8, last)))
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(path)


def test_bin_files_are_open_one_at_a_time(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(copied, tmp_path / "one") == 0
    tensors = list(load_file(copied / "model.safetensors").items())
    (copied / "model.safetensors").unlink()
    for i in range(3):
        torch.save(dict(tensors[i::3]), copied / f"pytorch_model-0000{i + 1}-of-00003.bin")
    honest, held = source_reader.load_state, []

    def load(path: Path) -> dict[str, torch.Tensor]:
        held.append(len(source_reader.OPEN))
        return honest(path)

    monkeypatch.setattr(source_reader, "load_state", load)
    assert run(copied, tmp_path / "three") == 0
    assert len(held) > 3 and max(held) == 0
    assert (tmp_path / "three/model.safetensors").read_bytes() == (tmp_path / "one/model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["number as a name", "sparse", "meta", "negated"])
def test_bin_files_hold_plain_named_tensors(kind: str, copied: Path, tmp_path: Path, capsys) -> None:
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    q = tensors[Q_PROJ]
    odd = {"number as a name": {0: q}, "sparse": {Q_PROJ: q.to_sparse()}, "meta": {Q_PROJ: q.to("meta")}}
    torch.save(tensors | odd.get(kind, {Q_PROJ: torch._neg_view(q)}), copied / "pytorch_model.bin")
    if kind == "negated":
        assert run(copied, tmp_path / "out", "--verify") == 0
        assert torch.equal(all_tensors(tmp_path / "out")["decoder.layers.0.self_attn.q_proj.weight"], -q)
    else:
        assert "no plain named tensor" in refusal(capsys, copied, tmp_path / "out")


# --verify


def test_types_of_one_size_do_not_hold_each_other(copied: Path, tmp_path: Path, capsys) -> None:
    """Logits of float16 weights rounded to bfloat16 differ, and that is no fault of the conversion."""
    change(copied, to_type(torch.float16))
    assert run(copied, tmp_path / "out", "--dtype", "bfloat16", "--verify") == 0
    assert not stream.holds(torch.bfloat16, torch.float16) and stream.holds(torch.float32, torch.bfloat16)


def test_logits_that_are_no_numbers_fail(copied: Path, tmp_path: Path, capsys) -> None:
    change(copied, lambda t: t.update({n: v * 1e30 for n, v in t.items() if n.endswith("norm.weight")}))
    assert "differ from transformers'" in refusal(capsys, copied, tmp_path / "out", "--verify")


def test_a_source_that_transformers_cannot_load(copied: Path, tmp_path: Path, capsys) -> None:
    (copied / "model.safetensors").rename(copied / "weights.safetensors")
    assert run(copied, tmp_path / "out", "--verify") == 0
    out = capsys.readouterr().out
    assert "logits were not compared: transformers cannot load" in out and "bit for bit" in out
