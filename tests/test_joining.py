"""Joined memories: what hearing one recording after the other leaves, told apart by recording, kept in files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from speech_xl.backend import BACKENDS, is_installed
from speech_xl.cli import main
from speech_xl.config import ModelConfig
from speech_xl.conversation import Listening, ask
from speech_xl.describe import describe
from speech_xl.errors import MemoryFileError, ScheduleError
from speech_xl.joining import join_memories
from speech_xl.memory import AudioMemory, load_memory, save_memory
from speech_xl.model import SpeechModel
from speech_xl.recall import intervals_between
from speech_xl.schedule import ListedRatios, Scheduler
from speech_xl.slices import slice_memory
from speech_xl.transcript import transcribe
from tests.numpy_backend.backend import Backend as Reference
from tests.tiny import save_checkpoint, tiny_config, write_sound

TWINS = [name for name in BACKENDS if is_installed(name)]
QUESTION = "what drink is order 4?"


def alone(**changes: object) -> ModelConfig:
    """Intervals that see nothing of one another."""
    return tiny_config(sst=dataclasses.replace(tiny_config().sst, horizon=0), **changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("joining") / "model", alone())


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sounds")
    return [
        write_sound(folder / f"{name}.wav", seconds, seed)
        for seed, (name, seconds) in enumerate([("a", 4.4), ("b", 2.6)])
    ]


@pytest.fixture(scope="module", params=TWINS)
def model(request: pytest.FixtureRequest, checkpoint: Path) -> SpeechModel:
    return SpeechModel.load(str(checkpoint), request.param)


def heard(model: SpeechModel, path: Path, ratio: int | None = 4, summarizer: str = "auto") -> AudioMemory:
    listening = Listening(model, path, ratio, summarizer=summarizer)
    list(listening)
    return listening.memory


@pytest.fixture(scope="module")
def memories(model: SpeechModel, sounds: list[Path]) -> list[AudioMemory]:
    return [heard(model, sounds[0], 4), heard(model, sounds[1], None)]


def answered(model: SpeechModel, memory: AudioMemory) -> tuple[str, list]:
    asking = ask(model, memory, QUESTION, longest=8)
    list(asking)
    return asking.answer.answer, asking.answer.evidence


@pytest.mark.parametrize("name", TWINS)
def test_joined_is_what_hearing_one_after_the_other_leaves(name: str, tmp_path: Path) -> None:
    """To 1e-5, without a prefix; with one, intervals of the second have heard it from nearer."""
    config = alone(prompt__before_audio="")
    model = SpeechModel.load(str(save_checkpoint(tmp_path / "model", config)), name)
    backend, window = model.backend, config.tokens_per_window
    encoder = config.encoder
    mel = np.random.default_rng(0).standard_normal((4, encoder.num_mel_bins, encoder.window_frames)).astype(np.float32)
    positions = np.full(2, encoder.max_source_positions)
    scheduler, states = Scheduler(16, ListedRatios((4,)), horizon=0), []
    whole = backend.start([])
    for part in (mel[:2], mel[2:]):
        own, alone_scheduler = backend.start([]), Scheduler(16, ListedRatios((4,)), horizon=0)
        for state, clock in ((whole, scheduler), (own, alone_scheduler)):
            backend.hear([(state, [window] * 2)], part, positions)
            for plan in list(clock.plan_all(2 * window)):  # each recording's last interval is ragged
                backend.close_intervals([(state, [plan])])
        states.append(own)
    ours, theirs = (backend.export_memory(s) for s in (backend.join(*states, 0), whole))
    for part in theirs:
        np.testing.assert_allclose(ours[part], theirs[part], atol=1e-5, rtol=1e-5)


def test_a_joined_memory_is_that_of_plain_numpy(model: SpeechModel, memories, checkpoint: Path) -> None:
    reference, prefix = Reference.load(checkpoint, model.config), len(memories[0].prefix)
    joined = join_memories(model, memories)
    states = [reference.import_memory(model.backend.export_memory(m.state)) for m in memories]
    expected = reference.join(*states, prefix)
    for part, array in reference.export_memory(expected).items():
        np.testing.assert_allclose(model.backend.export_memory(joined.state)[part], array, atol=1e-5, rtol=1e-5)
    ids = model.prompt.question_ids(QUESTION)
    scores = [
        backend.logits(s, ids, joined.position) for backend, s in ((model.backend, joined.state), (reference, expected))
    ]
    np.testing.assert_allclose(*scores, atol=1e-4, rtol=1e-4)


def test_what_is_known_of_both_goes_on(model: SpeechModel, memories: list[AudioMemory]) -> None:
    one, other = memories
    before = [model.backend.export_memory(m.state) for m in memories]
    joined = join_memories(model, memories)
    assert joined.slots == one.slots + len(other.spans) and joined.bytes == joined.slots * model.bytes_per_slot
    assert joined.tokens == one.tokens + other.tokens and joined.ratios == one.ratios + other.ratios
    assert joined.seconds == pytest.approx(7.0) and joined.recording.path == "a.wav + b.wav"
    np.testing.assert_allclose(joined.slot_times[len(one.spans) :], other.slot_times + one.seconds, atol=1e-5)
    assert [joined.part_at(s)[0].path for s in (0, 4.3, 4.5, 6.9)] == ["a.wav", "a.wav", "b.wav", "b.wav"]
    assert joined.part_at(5.0)[1] == pytest.approx(0.6)
    numbers = [i.number for i in intervals_between(joined, 0, 7)]
    assert numbers == list(range(one.intervals + other.intervals))
    texts = [[s.text for s in transcribe(model, m)] for m in memories]
    assert [s.text for s in transcribe(model, join_memories(model, memories))] == texts[0] + texts[1]
    part = slice_memory(model, joined, 5.0, 6.0)
    assert part.ratios == (None,) * len(part.ratios) and part.slot_times[0, 0] >= 4.9
    for memory, arrays in zip(memories, before, strict=True):  # the given ones stay as they were
        assert all(np.array_equal(model.backend.export_memory(memory.state)[name], a) for name, a in arrays.items())


def test_a_file_keeps_it_and_is_asked_like_any(model: SpeechModel, memories: list[AudioMemory], tmp_path: Path) -> None:
    joined = join_memories(model, [*memories, memories[0]])
    save_memory(joined, tmp_path / "c.sxl", model)
    again = load_memory(tmp_path / "c.sxl", model)
    assert again.parts == joined.parts and len(again.parts) == 3 and again.ratios == joined.ratios
    assert np.array_equal(again.spans, joined.spans) and np.array_equal(again.times, joined.times)
    assert answered(model, again)[0] == answered(model, joined)[0]
    assert [value for name, value in describe(tmp_path / "c.sxl") if name == "recording 2"] == ["b.wav, 2.6 s heard"]
    nested = join_memories(model, [join_memories(model, memories), memories[0]])
    assert nested.parts == joined.parts


def test_a_file_whose_parts_cannot_be_is_refused(tiny_checkpoint, model: SpeechModel, memories, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    save_memory(join_memories(model, memories), tmp_path / "c.sxl", model)
    arrays = load_file(tmp_path / "c.sxl")
    with safe_open(tmp_path / "c.sxl", "numpy") as file:
        metadata = file.metadata()
    header = json.loads(metadata["header"])
    for wrong in ([], header["parts"][:1], [*header["parts"][::-1], 7], None, [header["parts"][0]] * 2, "x"):
        changed = metadata | {"header": json.dumps(header | {"parts": wrong})}
        save_file(arrays, tmp_path / "bad.sxl", metadata=changed)
        with pytest.raises(MemoryFileError, match=r"bad\.sxl"):
            load_memory(tmp_path / "bad.sxl", model)


def test_memories_that_do_not_stand_alone_are_not_joined(
    tiny_speech_model: SpeechModel, model: SpeechModel, memories: list[AudioMemory], sounds: list[Path]
) -> None:
    seeing_all = heard(tiny_speech_model, sounds[1])
    with pytest.raises(ScheduleError, match="horizon of 0"):
        join_memories(tiny_speech_model, [seeing_all, seeing_all])
    with pytest.raises(ScheduleError, match="different summarizers"):
        join_memories(model, [memories[0], heard(model, sounds[1], 4, "pool")])


def test_the_command_joins_and_ask_names_the_recording(
    checkpoint: Path, sounds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    chosen = ["--model", str(checkpoint), "--backend", "torch"]
    for path in sounds:
        assert main(["listen", str(path), "-o", str(tmp_path / f"{path.stem}.sxl"), "--ratio", "4", *chosen]) == 0
    files = [str(tmp_path / f"{path.stem}.sxl") for path in sounds]
    assert main(["join", *files, "-o", str(tmp_path / "c.sxl"), *chosen]) == 0
    assert "2 memories, 0:07" in capsys.readouterr().out
    assert main(["ask", str(tmp_path / "c.sxl"), QUESTION, "--max-tokens", "4", *chosen]) == 0
    assert "[a.wav 0:0" in (out := capsys.readouterr().out) or "[b.wav 0:0" in out
    assert main(["ask", str(tmp_path / "c.sxl"), QUESTION, "a?", "--json", "--max-tokens", "4", *chosen]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recording"]["parts"] == [{"path": "a.wav", "start": 0}, {"path": "b.wav", "start": 4.4}]
    assert main(["join", *files, "-o", str(tmp_path / "c.wav"), *chosen]) == 2
    assert "must end in .sxl" in capsys.readouterr().err
