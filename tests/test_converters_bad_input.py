"""Strange values in a source's small files, and words that contradict each other: one sentence each."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.source import read_json
from tests import families
from tests.families import edit, refusal, run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.qwen2_audio(tmp_path_factory.mktemp("source") / "tiny-audio")


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A source that a test may break."""
    return Path(shutil.copytree(source, tmp_path / "copied"))


def edit_part(folder: Path, part: str, **changes: object) -> None:
    edit(folder, **{part: read_json(folder / "config.json")[part] | changes})


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": "4"},
        {"num_hidden_layers": 10**30},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_theta": -5, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": float("inf"), "rope_type": "default"}},
        {"rms_norm_eps": 10**400},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": -1},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ],
    ids=str,
)
def test_a_decoders_strange_numbers(change: dict, copied: Path, tmp_path: Path, capsys) -> None:
    edit_part(copied, "text_config", **change)
    assert refusal(capsys, copied, tmp_path / "out")


@pytest.mark.parametrize("positions", [0.5, 7, 0, -1500, True, "1500"], ids=str)
def test_a_whispers_strange_positions(positions: object, tmp_path: Path, capsys) -> None:
    whisper, decoder = families.whisper(tmp_path / "whisper"), families.qwen2(tmp_path / "qwen2")
    edit(whisper, max_source_positions=positions)
    assert refusal(capsys, whisper, tmp_path / "out", "--decoder", str(decoder))


@pytest.mark.parametrize("ends", [-1, 2**40, 10**30, "x", 3.0, {"a": 1}, [["a"]]], ids=str)
def test_strange_end_tokens(ends: object, copied: Path, tmp_path: Path, capsys) -> None:
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert "wrong kind" in refusal(capsys, copied, tmp_path / "out")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only for poems') }}", "only for poems"),
        ("{% for m in %}", "Expected an expression"),
        ("{{ bos_token }}Hello.", "no place for the recording"),
    ],
)
def test_a_chat_template_that_fails_is_never_replaced(
    template: str, reason: str, copied: Path, tmp_path: Path, capsys
) -> None:
    (copied / "chat_template.jinja").write_text(template)
    sentence = refusal(capsys, copied, tmp_path / "out")
    assert "chat template" in sentence and reason in sentence and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"[" * 200_000),
        ("config.json", b"\xff\xfe{}"),
        ("model.safetensors", (200_000).to_bytes(8, "little") + b"[" * 200_000),
        ("tokenizer.json", b"\xff"),
        ("chat_template.jinja", b"\xff"),
        ("chat_template.json", b'{"chat_template": ["x"]}'),
        ("chat_template.json", b'{"chat_template": [{"name": "default"}]}'),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:8]),
)
def test_files_that_are_no_such_files(name: str, content: bytes, copied: Path, tmp_path: Path, capsys) -> None:
    (copied / name).write_bytes(content)
    assert str(copied) in refusal(capsys, copied, tmp_path / "out")


@pytest.mark.parametrize(
    ("vocabulary", "merges"), [("[]", b"a b\n"), ('{"a": "b"}', b"a b\n"), ('{"a": 0}', b"\xff b\n")]
)
def test_old_tokenizers_that_are_broken(vocabulary: str, merges: bytes, copied: Path, tmp_path: Path, capsys) -> None:
    (copied / "tokenizer.json").unlink()
    (copied / "vocab.json").write_text(vocabulary)
    (copied / "merges.txt").write_bytes(merges)
    assert "tokenizer" in refusal(capsys, copied, tmp_path / "out")


@pytest.mark.parametrize("change", [{"pattern": "("}, {"pattern": 3}, {"default_num_special_tokens": -3}], ids=str)
def test_tekken_files_that_are_broken(change: dict, tmp_path: Path, capsys) -> None:
    source = families.voxtral(tmp_path / "voxtral")
    (source / "tokenizer.json").unlink()
    settings = {"pattern": "a", "default_num_special_tokens": 2, "default_vocab_size": 4} | change
    vocabulary = [{"rank": 0, "token_bytes": base64.b64encode(b"a").decode()}]
    (source / "tekken.json").write_text(json.dumps({"config": settings, "vocab": vocabulary}))
    assert "tekken" in refusal(capsys, source, tmp_path / "out")


@pytest.mark.parametrize("name", ["", "a\0b", "~no-such-user/x", "/tmp/" + "x" * 5000, "x" * 300 + "/" + "y" * 5000])
def test_impossible_source_names(name: str, tmp_path: Path, capsys) -> None:
    assert refusal(capsys, name, tmp_path / "out")


def test_a_decoders_faults_name_its_folder(tmp_path: Path, capsys) -> None:
    whisper, qwen2 = families.whisper(tmp_path / "whisper"), families.qwen2(tmp_path / "qwen2")
    path = qwen2 / "model.safetensors"
    tensors = load_file(path)
    for broken in (
        tensors | {"model.norm.weight": torch.ones(5)},
        {n: t for n, t in tensors.items() if "model.norm" not in n},
    ):
        save_file(broken, path, {"format": "pt"})
        said = refusal(capsys, whisper, tmp_path / "out", "--decoder", str(qwen2))
        assert str(qwen2) in said and str(whisper) not in said
    edit(qwen2, hidden_size="wide")
    assert str(qwen2) in refusal(capsys, whisper, tmp_path / "out", "--decoder", str(qwen2))


def test_words_that_would_be_ignored(source: Path, tmp_path: Path, capsys) -> None:
    for words in (("--q-bits", "8"), ("--q-group-size", "32")):
        assert "add -q" in refusal(capsys, source, tmp_path / "out", *words)
    assert run(source, tmp_path / "own") == 0
    assert "--decoder" in refusal(capsys, tmp_path / "own", tmp_path / "out", "--decoder", str(source))


def test_packing_without_mlx_is_refused_before_anything_is_made(
    source: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("converters.__main__.is_installed", lambda _: False)
    assert "not installed" in refusal(capsys, source, tmp_path / "out", "-q")
    assert not list(tmp_path.iterdir())
