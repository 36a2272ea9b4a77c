"""A third backend is one folder and one line of registration, and in plain numpy it is the reference of the twins.

Both must give its logits to 1e-4, its tokens and its evidence on whatever the core plans, and read its memories.
"""

from __future__ import annotations

import inspect
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl import backend as registry
from speech_xl.backend import BACKENDS, Backend, Registration, is_installed, load_backend
from speech_xl.cli import main
from speech_xl.config import ModelConfig
from speech_xl.conversation import Listening, ask
from speech_xl.doctor import check_numbers
from speech_xl.errors import BackendError
from speech_xl.memory import AudioMemory, load_memory, save_memory
from speech_xl.model import SpeechModel
from speech_xl.schedule import ListedRatios, Scheduler
from speech_xl.summarizers import SUMMARIZERS
from tests.tiny import configs, save_checkpoint, tiny_config, tiny_recognizer_config

TWINS = [name for name in BACKENDS if is_installed(name)]
NUMPY = Registration("tests.numpy_backend.backend", "numpy", "pip install numpy")
few = settings(max_examples=8, deadline=None, derandomize=True)
ratios_drawn = st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=4)  # raw, or the number of a ratio
PREFIX, QUESTION = [3, 1, 4], [5, 9, 12, 7]


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "numpy", NUMPY)
        yield


def logits_and_steps(backend: Backend, config: ModelConfig, plans: list, mel: np.ndarray, position: int, longest: int):
    """One recording by its plans -> what the question gives: logits, greedy tokens, attention, and the memory's arrays."""
    state = backend.start(PREFIX)
    positions = np.full(len(mel), config.encoder.max_source_positions)
    backend.hear([(state, [config.tokens_per_window] * len(mel))], mel, positions)
    for plan in plans:
        backend.close_intervals([(state, [plan])])
    steps = list(itertools.islice(backend.answer(state, QUESTION, position), longest))
    looks = np.stack([step.slot_weights for step in steps])
    return backend.logits(state, QUESTION, position), [s.token for s in steps], looks, backend.export_memory(state)


def assert_all_agree(config: ModelConfig, folder: str, plans: list, position: int, windows: int) -> None:
    path = save_checkpoint(Path(folder) / "model", config)
    shape = (windows, config.encoder.num_mel_bins, config.encoder.window_frames)
    mel = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = logits_and_steps(load_backend("numpy", path, config), config, plans, mel, position, 6)
    for name in TWINS:
        found = logits_and_steps(load_backend(name, path, config), config, plans, mel, position, 6)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-4, rtol=1e-4)
        assert found[1] == expected[1]
        np.testing.assert_allclose(found[2], expected[2], atol=1e-4)
        for part in ("keys", "values"):
            np.testing.assert_allclose(found[3][part], expected[3][part], atol=1e-4, rtol=1e-4)


@few
@given(config=configs(), drawn=ratios_drawn, windows=st.integers(1, 4))
def test_the_twins_compute_what_plain_numpy_does(config: ModelConfig, drawn: list, windows: int) -> None:
    """Raw and SST intervals in any order, horizons, pooling, several windows: whatever a schedule holds."""
    listed = tuple(None if number is None else config.sst.ratios[number] for number in drawn)
    scheduler = Scheduler(config.sst.interval, ListedRatios(listed), len(PREFIX), horizon=config.sst.horizon)
    plans = list(scheduler.plan_all(windows * config.tokens_per_window))
    with tempfile.TemporaryDirectory() as folder:
        assert_all_agree(config, folder, plans, scheduler.base, windows)


@pytest.mark.parametrize("horizon", [None, 3])
@pytest.mark.parametrize("name", [name for name, s in SUMMARIZERS.items() if not s.needs_training])
def test_and_so_it_is_for_every_rule_without_training(name: str, horizon: int | None, tmp_path: Path) -> None:
    config = tiny_config()
    scheduler = Scheduler(16, ListedRatios((4, 2, None)), len(PREFIX), SUMMARIZERS[name].plan, horizon)
    plans = list(scheduler.plan_all(5 * config.tokens_per_window))
    assert_all_agree(config, str(tmp_path), plans, scheduler.base, 5)


def test_padding_pools_and_layouts_of_other_encoders(tmp_path: Path) -> None:
    changes = {"encoder__pool": 2, "encoder__mask_padding": True, "adapter__stack": 2, "layout": "mlx"}
    config = tiny_config(**changes)
    path = save_checkpoint(tmp_path / "torch", tiny_config(**changes | {"layout": "torch"}))
    assert main(["convert", "--hf-path", str(path), "--to", "mlx", "--mlx-path", str(tmp_path / "mlx")]) == 0
    mel = np.random.default_rng(1).standard_normal((2, 80, 192)).astype(np.float32)
    found = []
    for name in ("numpy", *TWINS):
        backend = load_backend(name, tmp_path / "mlx", config)
        state, scheduler = backend.start(PREFIX), Scheduler(16, ListedRatios((4,)), len(PREFIX))
        backend.hear([(state, [16, 3])], mel, np.array([96, 40]))
        for plan in scheduler.plan_all(19):
            backend.close_intervals([(state, [plan])])
        found.append(backend.logits(state, QUESTION, scheduler.base))
    for logits in found[1:]:
        np.testing.assert_allclose(logits, found[0], atol=1e-4, rtol=1e-4)


def heard(model: SpeechModel, path: Path, ratio: int | None = 4) -> AudioMemory:
    listening = Listening(model, path, ratio)
    list(listening)
    return listening.memory


def answered(model: SpeechModel, memory: AudioMemory) -> tuple[str, list[float]]:
    asking = ask(model, memory, "what drink is order 4?", longest=12)
    list(asking)
    return asking.answer.answer, [e.start for e in asking.answer.evidence]


@pytest.mark.parametrize("twin", TWINS)
def test_memories_are_read_across(twin: str, tiny_checkpoint: Path, recording: Path, tmp_path: Path) -> None:
    models = {name: SpeechModel.load(str(tiny_checkpoint), name) for name in ("numpy", twin)}
    memories = {name: heard(model, recording) for name, model in models.items()}
    said = {name: answered(models[name], memory) for name, memory in memories.items()}
    assert said["numpy"] == said[twin]
    for maker, reader in (("numpy", twin), (twin, "numpy")):
        save_memory(memories[maker], tmp_path / f"{maker}.sxl", models[maker])
        assert answered(models[reader], load_memory(tmp_path / f"{maker}.sxl", models[reader])) == said[maker]


@pytest.mark.parametrize("twin", TWINS)
def test_spans_forks_and_words_agree(twin: str, tiny_checkpoint: Path, recording: Path) -> None:
    found = []
    for name in ("numpy", twin):
        model = SpeechModel.load(str(tiny_checkpoint), name)
        backend, memory = model.backend, heard(model, recording)
        prefix = len(memory.prefix)
        spans = backend.answer_spans(memory.state, prefix, [(0, 5), (3, 11), (7, 7)], QUESTION, {0, 1}, 5)
        scheduler = Scheduler(model.interval, ListedRatios((8,)), prefix)
        branch = backend.fork(memory.state)
        backend.hear_words(branch, [40, 41, 42])
        plan = scheduler.next(3)
        backend.close_intervals([(branch, [plan])])
        logits = [backend.logits(s, QUESTION, memory.slots) for s in (branch, memory.state)]
        assert backend.memory_bytes(branch) == backend.memory_bytes(memory.state) + model.bytes_per_slot
        found.append((spans, logits))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)
    assert not np.allclose(found[0][1][0], found[0][1][1])


def test_commands_offer_it_by_themselves(tiny_checkpoint: Path, recording: Path, capsys: pytest.CaptureFixture) -> None:
    printed = []
    for name in ("numpy", *TWINS):
        words = ["ask", str(recording), "what drink?", "--model", str(tiny_checkpoint), "--backend", name]
        assert main([*words, "--max-tokens", "6"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] and set(printed) == {printed[0]}
    assert not check_numbers("numpy").advice
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "numpy" in capsys.readouterr().out


def test_what_it_lacks_it_refuses_in_a_sentence(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "words", tiny_recognizer_config())
    backend = load_backend("numpy", path, tiny_recognizer_config())
    with pytest.raises(BackendError, match="no recogniser"):
        backend.recognize(np.zeros((1, 80, 192), np.float32))
    with pytest.raises(BackendError, match="packs memories"):
        load_backend("numpy", path, tiny_config(), memory_bits=8)


@pytest.mark.parametrize("name", [*TWINS, "numpy"])
def test_a_backend_has_every_method_of_the_protocol(name: str) -> None:
    backend = registry.importlib.import_module(BACKENDS[name].module).Backend
    for method, wanted in inspect.getmembers(Backend, inspect.isfunction):
        if not method.startswith("_"):
            assert [*inspect.signature(getattr(backend, method)).parameters] == [*inspect.signature(wanted).parameters]


def test_a_home_comes_before_the_order_of_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "is_installed", lambda name: name != "torch")
    monkeypatch.setattr(registry.platform, "system", lambda: "Plan 9")
    assert registry.choose_backend() == ("mlx", "it is the first of torch, mlx, numpy that is installed")
    monkeypatch.setattr(registry, "is_installed", lambda name: True)
    assert registry.choose_backend()[0] == "torch"
    monkeypatch.setattr(registry.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(registry.platform, "machine", lambda: "arm64")
    assert registry.choose_backend() == ("mlx", "it is made for this kind of machine")
    assert registry.backend_for_layout("torch") == "torch" and registry.backend_for_layout("mlx") == "mlx"
    monkeypatch.setattr(registry, "is_installed", lambda name: False)
    with pytest.raises(BackendError, match="No backend is installed; pip install torch"):
        registry.choose_backend()
