"""Memory files: what goes in comes out, nothing damaged gets in, and the format page is true."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from speech_xl.conversation import Listening, ask
from speech_xl.describe import describe
from speech_xl.errors import MemoryFileError, OutputError
from speech_xl.memory import MemoryHeader, load_memory, read_header, save_memory
from speech_xl.model import SpeechModel
from tests.tiny import write_sound

PAGE = Path(__file__).parent.parent / "docs" / "memory_format.md"
FIELDS = [f.name for f in dataclasses.fields(MemoryHeader)]
NOT_IT = [None, -1, 2**70, 0.5, 1e300, True, "x", [], [None, "x"], {}, [1] * 3]


@pytest.fixture(scope="module")
def listening(tiny_speech_model: SpeechModel, recording: Path) -> Listening:
    heard = Listening(tiny_speech_model, recording, 4)
    list(heard)
    return heard


@pytest.fixture(scope="module")
def file(listening: Listening, tiny_speech_model: SpeechModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "talk.sxl"
    save_memory(listening.memory, path, tiny_speech_model)
    return path


def parts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict]:
    """-> arrays, metadata, the parsed header."""
    with safe_open(path, "numpy") as opened:
        metadata = opened.metadata()
    return load_file(path), metadata, json.loads(metadata["header"])


def written(path: Path, arrays: dict, metadata: dict, header: object) -> Path:
    save_file(arrays, path, metadata=metadata | {"header": json.dumps(header)})
    return path


@pytest.mark.parametrize("ratio", [None, 2, 16])
@pytest.mark.parametrize("seconds", [0.11, 4.0])
def test_what_goes_in_comes_out(
    tiny_speech_model: SpeechModel, tmp_path: Path, ratio: int | None, seconds: float
) -> None:
    model = tiny_speech_model
    heard = Listening(model, write_sound(tmp_path / "talk.wav", seconds), ratio)
    list(heard)
    save_memory(heard.memory, tmp_path / "talk.sxl", model)
    loaded = load_memory(tmp_path / "talk.sxl", model)
    for f in dataclasses.fields(loaded):
        if f.name not in ("state", "spans", "times"):
            assert getattr(loaded, f.name) == getattr(heard.memory, f.name), f.name
    assert np.array_equal(loaded.spans, heard.memory.spans) and np.array_equal(loaded.times, heard.memory.times)
    ours, theirs = (model.backend.export_memory(m.state) for m in (heard.memory, loaded))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert read_header(tmp_path / "talk.sxl").slots == loaded.slots == ours["keys"].shape[2]


def test_asking_leaves_a_memory_as_it_was(tiny_speech_model: SpeechModel, file: Path) -> None:
    memory = load_memory(file, tiny_speech_model)
    before = tiny_speech_model.backend.export_memory(memory.state)
    list(ask(tiny_speech_model, memory, "what?", longest=5))
    after = tiny_speech_model.backend.export_memory(memory.state)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_half_precision_arrays_are_read(tiny_speech_model: SpeechModel, file: Path, tmp_path: Path) -> None:
    arrays, metadata, header = parts(file)
    halves = {n: a.astype(np.float16) if n in ("keys", "values") else a for n, a in arrays.items()}
    loaded = load_memory(written(tmp_path / "half.sxl", halves, metadata, header), tiny_speech_model)
    assert loaded.bytes == loaded.slots * tiny_speech_model.bytes_per_slot


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*FIELDS, "recording.path", "recording.seconds", "recording.seconds_heard"]),
    st.sampled_from(NOT_IT),
)
def test_any_wrong_field_is_one_sentence(tmp_path_factory, tiny_speech_model, file, name: str, value: object) -> None:
    arrays, metadata, header = parts(file)
    place, _, field = name.partition(".")
    changed = header[place] | {field: value} if field else value
    path = written(tmp_path_factory.mktemp("m") / "bad.sxl", arrays, metadata, header | {place: changed})
    legal = [("recording.seconds", None), ("recording.seconds", 0.5), ("warnings", [])]
    if (name, value) in legal or (name in ("model", "recording.path") and value == "x"):
        assert load_memory(path, tiny_speech_model).slots == 24
        return
    with pytest.raises(MemoryFileError) as refusal:
        load_memory(path, tiny_speech_model)
    assert "bad.sxl" in str(refusal.value)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
def test_a_damaged_byte_or_a_cut_never_escapes_as_anything_else(
    tmp_path_factory, tiny_speech_model, file, where: float, flip: int, cut: bool
) -> None:
    """A flipped bit of a number may pass for another number; everything else must be refused."""
    data = bytearray(file.read_bytes())
    at = int(where * len(data))
    if cut:
        del data[at:]
    else:
        data[at] ^= flip
    path = tmp_path_factory.mktemp("m") / "bad.sxl"
    path.write_bytes(data)
    for look in (lambda: load_memory(path, tiny_speech_model), lambda: describe(path)):
        try:
            look()
            assert not cut
        except MemoryFileError:
            pass


@pytest.mark.parametrize(
    "damage", ["short", "long", "type", "infinite", "other spans", "times", "missing", "version", "no header"]
)
def test_arrays_that_contradict_the_header(
    tiny_speech_model: SpeechModel, file: Path, tmp_path: Path, damage: str
) -> None:
    arrays, metadata, header = parts(file)
    if damage == "short":
        arrays["values"] = arrays["values"][:, :, :-1].copy()
    elif damage == "long":
        arrays["keys"] = np.concatenate([arrays["keys"], arrays["keys"][:1]])
    elif damage == "type":
        arrays["keys"] = arrays["keys"].astype(np.int32)
    elif damage == "infinite":
        arrays["values"][1, 0, 3, 2] = np.inf
    elif damage == "other spans":
        arrays["spans"][2, 0] += 1
    elif damage == "times":
        arrays["times"][5:7] = arrays["times"][6:4:-1]
    elif damage == "missing":
        del arrays["values"]
    elif damage == "version":
        metadata["version"] = "1"
    path = tmp_path / "bad.sxl"
    if damage == "no header":
        save_file(arrays, path, metadata={k: v for k, v in metadata.items() if k != "header"})
    else:
        written(path, arrays, metadata, header)
    with pytest.raises(MemoryFileError, match=r"bad\.sxl"):
        load_memory(path, tiny_speech_model)


@pytest.mark.parametrize("text", ["a\0b.wav", "\ud800.wav"])
def test_a_description_that_is_no_text_is_refused(
    tiny_speech_model: SpeechModel, file: Path, tmp_path: Path, text: str
) -> None:
    """No file system, page or JSON of a server would take it."""
    arrays, metadata, header = parts(file)
    header["recording"]["path"] = text
    with pytest.raises(MemoryFileError, match="damaged description"):
        load_memory(written(tmp_path / "bad.sxl", arrays, metadata, header), tiny_speech_model)


def test_warnings_of_the_recording_travel_with_its_memory(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "cut.wav", 4.0)
    path.write_bytes(path.read_bytes()[:-40_000])
    heard = Listening(tiny_speech_model, path, 4)
    list(heard)
    save_memory(heard.memory, tmp_path / "cut.sxl", tiny_speech_model)
    assert (
        heard.memory.warnings and load_memory(tmp_path / "cut.sxl", tiny_speech_model).warnings == heard.memory.warnings
    )


def test_another_interval_than_the_models_is_refused(
    tiny_speech_model: SpeechModel, recording: Path, tmp_path: Path
) -> None:
    listening = Listening(tiny_speech_model, recording, ratio=None)
    list(listening)
    save_memory(listening.memory, tmp_path / "raw.sxl", tiny_speech_model)
    arrays, metadata, header = parts(tmp_path / "raw.sxl")
    header["interval"] *= 2  # raw slots are the same at any interval, and so are the shapes
    header["ratios"] = header["ratios"][::2]
    written(tmp_path / "bad.sxl", arrays, metadata, header)
    with pytest.raises(MemoryFileError, match="disagree"):
        load_memory(tmp_path / "bad.sxl", tiny_speech_model)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SafetensorError])
def test_a_save_that_does_not_end_leaves_the_old_file_alone(
    monkeypatch: pytest.MonkeyPatch, listening: Listening, tiny_speech_model: SpeechModel, tmp_path: Path, stop: type
) -> None:
    path = tmp_path / "talk.sxl"
    path.write_bytes(b"the old one")

    def write_half(arrays: dict, name: Path, metadata: dict) -> None:
        Path(name).write_bytes(b"half")
        raise stop("No space left on device")

    monkeypatch.setattr("speech_xl.memory.save_file", write_half)
    with pytest.raises(OutputError if stop is SafetensorError else stop):
        save_memory(listening.memory, path, tiny_speech_model)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"the old one"


def test_others_may_read_a_file_as_the_umask_says(
    listening: Listening, tiny_speech_model: SpeechModel, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        save_memory(listening.memory, tmp_path / "talk.sxl", tiny_speech_model)
    finally:
        os.umask(before)
    assert (tmp_path / "talk.sxl").stat().st_mode & 0o777 == 0o640


def test_the_format_page_names_every_field_and_its_example_is_true(file: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    arrays, metadata, header = parts(file)
    for name in [*arrays, *metadata, *header, *header["recording"]]:
        assert f"`{name}`" in text, name
    example = re.search(r"```json\n(.*?)```", text, re.DOTALL)[1]
    assert MemoryHeader.from_json(example).slots == 13


def test_the_fingerprint_is_as_the_format_page_says(tiny_speech_model: SpeechModel) -> None:
    folder = tiny_speech_model.folder
    total = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        total.update(json.dumps([path.name, hashlib.sha256(path.read_bytes()).hexdigest()]).encode())
    assert total.hexdigest() == tiny_speech_model.fingerprint
