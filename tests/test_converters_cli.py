"""`python -m converters`: layouts, kills, and one sentence with exit code 2 for every bad input."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from converters import convert as conversion
from converters import source as source_reader
from converters import stream
from converters.__main__ import main
from speech_xl.checkpoints import check_checkpoint
from speech_xl.conversation import SpeechModel
from tests import families
from tests.tiny import save_checkpoint, tiny_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.qwen2_audio(tmp_path_factory.mktemp("source") / "tiny-audio")


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A source that a test may break."""
    return Path(shutil.copytree(source, tmp_path / "copied"))


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


# Layouts


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


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


# Kills and disks


def test_a_broken_conversion_continues(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(source, tmp_path / "whole") == 0
    monkeypatch.setattr(stream, "SHARD", 12_000)
    honest, written = stream.write_shard, []

    def write(path: Path, *rest: object) -> None:
        written.append(path.name)
        if len(written) == 4:
            path.with_suffix(".unfinished").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        honest(path, *rest)

    monkeypatch.setattr(conversion, "write_shard", write)
    out = tmp_path / "out"
    assert run(source, out) == 130
    assert not out.exists()
    assert run(source, out) == 0
    assert written[3] == written[4] and len(set(written)) == len(written) - 1, "finished shards are not made again"
    assert not list(out.glob("*.unfinished")) and not (out / "journal.json").exists()
    assert not (tmp_path / "out.partial").exists()
    whole, resumed = all_tensors(tmp_path / "whole"), all_tensors(out)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[n], resumed[n]) for n in whole)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(whole)
    assert check_checkpoint(out)


@pytest.mark.parametrize("rename", [1, 2])
def test_killed_while_the_output_gets_its_name(rename: int, source: Path, tmp_path: Path, monkeypatch) -> None:
    out, honest, renames = tmp_path / "out", Path.rename, []
    assert run(source, out) == 0

    def die(path: Path, target: Path) -> Path:
        renames.append(path)
        if len(renames) == rename:
            raise KeyboardInterrupt
        return honest(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        assert run(source, out, "--dtype", "float16", "--overwrite") == 130
    assert run(source, out, "--dtype", "float16", "--overwrite") == 0
    assert check_checkpoint(out).dtype == "float16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"] and not (out / "journal.json").exists()


def test_another_conversion_does_not_continue_the_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SHARD", 12_000)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "check_checkpoint", stop)
        assert run(source, tmp_path / "out") == 130
    assert run(source, tmp_path / "out", "--dtype", "bfloat16", "--verify") == 0
    assert all(t.dtype == torch.bfloat16 for t in all_tensors(tmp_path / "out").values())


SLOW = """
import sys, time
import converters.stream as stream
import converters.convert as conversion
stream.SHARD = 12_000
honest = stream.write_shard
def write(path, recipes, layout, written):
    def slowly(count):
        time.sleep(0.02)
        written(count)
    honest(path, recipes, layout, slowly)
conversion.write_shard = write
from converters.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_killed_without_warning_and_run_again(source: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.partial"
    words = [sys.executable, "-c", SLOW, "--hf-path", str(source), "--mlx-path", str(out)]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(work.glob("model-*.safetensors")) if work.exists() else []) < 3 and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL and not out.exists()
    finished = {p: p.stat().st_mtime_ns for p in work.glob("model-*.safetensors")}
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert all((out / p.name).stat().st_mtime_ns == t for p, t in finished.items())
    assert run(source, tmp_path / "whole") == 0
    whole, resumed = all_tensors(tmp_path / "whole"), all_tensors(out)
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_a_disk_without_room_is_seen_before_writing(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    assert "too little" in refusal(capsys, source, tmp_path / "out")


def test_a_disk_that_fills_up(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_shard", full)
        assert "full" in refusal(capsys, source, tmp_path / "out")
    assert run(source, tmp_path / "out") == 0


def test_an_output_that_exists_is_replaced_only_when_asked(source: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run(source, out) == 0
    assert "--overwrite" in refusal(capsys, source, out)
    assert run(source, out, "--dtype", "float16", "--overwrite") == 0
    assert check_checkpoint(out).dtype == "float16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert "no checkpoint folder" in refusal(capsys, source, precious, "--overwrite")
    assert "the source itself" in refusal(capsys, out, out, "--overwrite")


# Sources that cannot be converted


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


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


# The Hub


def http_error(kind: type[Exception]) -> Exception:
    """One of huggingface_hub's own errors, which want the response that they are about."""
    import httpx

    return kind("no", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co")))


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (lambda: http_error(errors.GatedRepoError), "gated"),
        (lambda: http_error(errors.RepositoryNotFoundError), "The Hub has no"),
        (lambda: http_error(errors.RevisionNotFoundError), "revision"),
        (lambda: errors.LocalEntryNotFoundError("offline"), "cannot be reached"),
        (lambda: OSError("connection reset"), "continues"),
    ],
)
def test_the_hubs_refusals_are_one_sentence(made, word: str, tmp_path: Path, monkeypatch, capsys) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise made()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert word in refusal(capsys, "someone/something", tmp_path / "out", "--revision", "v2")


def test_offline_means_no_network_at_all(tmp_path: Path, capsys) -> None:
    """conftest sets HF_HUB_OFFLINE; the real client answers here."""
    assert "cannot be reached" in refusal(capsys, "someone/something", tmp_path / "out")
    assert refusal(capsys, "not a/valid id!", tmp_path / "out")


def test_a_hub_id_is_pinned_and_uploads_go_up(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    asked, sent = [], []

    def snapshot_download(name: str, revision: str | None = None, **_: object) -> str:
        asked.append((name, revision))
        return str(source)

    class Api:
        def create_repo(self, repo: str, **_: object) -> None:
            sent.append(repo)

        def upload_folder(self, folder_path: str, repo_id: str) -> None:
            if repo_id == "no/room":
                raise http_error(errors.HfHubHTTPError)
            sent.append((folder_path, repo_id))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert run("someone/something", tmp_path / "out", "--revision", "abc123", "--upload-repo", "me/mine") == 0
    assert asked == [("someone/something", "abc123")]
    assert sent == ["me/mine", (str(tmp_path / "out"), "me/mine")]
    assert run("someone/something", tmp_path / "more", "--upload-repo", "no/room") == 2
    assert "was not uploaded" in capsys.readouterr().err
    assert check_checkpoint(tmp_path / "more")
