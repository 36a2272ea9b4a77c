"""Memory in shared pages, intervals and questions in batches: the same numbers as the slow way, and no work twice.

The slow way is the plain numpy backend, which copies everything, and one interval or question at a time. What is counted
is pages, bytes and calls, never seconds.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from speech_xl.backend import BACKENDS, Backend, State, is_installed, load_backend
from speech_xl.config import ModelConfig
from speech_xl.interval_batches import interval_batches
from speech_xl.schedule import FixedRatio, IntervalPlan, ListedRatios, Scheduler
from speech_xl.summarizers import SUMMARIZERS
from tests.numpy_backend.backend import Backend as Reference
from tests.tiny import configs, save_checkpoint, tiny_config

TWINS = [name for name in BACKENDS if is_installed(name)]
PREFIX = [3, 1, 4]
PROJECTIONS = {"torch": {}, "mlx": {"queries": 8}}  # torch reads the weights of queries, keys and values at once
few = settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
texts_drawn = st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=6), min_size=1, max_size=4)


@pytest.fixture(autouse=True, scope="module", params=[3])
def little_pages(request: pytest.FixtureRequest):
    """Pages of a few slots, so that little recordings have many, and intervals end inside them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TWINS:
            patch.setattr(import_module(f"{name}_backend.memory"), "PAGE_SLOTS", request.param)
        yield request.param


def plans_of(
    config: ModelConfig, windows: int, ratios: tuple, summarizer: str = "sst"
) -> tuple[list[IntervalPlan], int]:
    """The plans of some windows, all but three tokens of them, and where text behind them starts."""
    interval = config.sst.interval
    scheduler = Scheduler(interval, ListedRatios(ratios), len(PREFIX), SUMMARIZERS[summarizer].plan, config.sst.horizon)
    return list(scheduler.plan_all(windows * config.tokens_per_window - 3)), scheduler.base


def hear(backend: Backend, windows: int, batches: list[list[IntervalPlan]], seed: int = 0) -> State:
    encoder, per_window = backend.config.encoder, backend.config.tokens_per_window
    shape = (windows, encoder.num_mel_bins, encoder.window_frames)
    mel = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    state = backend.start(PREFIX)
    tokens = [per_window] * (windows - 1) + [per_window - 3]
    backend.hear([(state, tokens)], mel, np.full(windows, encoder.max_source_positions))
    for batch in batches:
        backend.close_intervals([(state, batch)])
    return state


def loaded(folder: str, config: ModelConfig, names: list[str], bits: int = 16) -> list[Backend]:
    path = save_checkpoint(Path(folder) / "model", config)
    return [Reference.load(path, config) if n == "numpy" else load_backend(n, path, config, bits) for n in names]


def one_by_one(backend: Backend, state: State, texts: list, position: int, ends: set, longest: int) -> list[list]:
    """Each text's steps up to its end."""
    found = []
    for ids in texts:
        steps = []
        for step in itertools.islice(backend.answer(state, ids, position), longest):
            steps.append(step)
            if step.token in ends:
                break
        found.append(steps)
    return found


def together(backend: Backend, state: State, texts: list, position: int, ends: set, longest: int) -> list[list]:
    found: list[list] = [[] for _ in texts]
    for steps in itertools.islice(backend.answer_together(state, texts, position, ends), longest):
        for number, step in steps.items():
            found[number].append(step)
    return found


@few
@given(
    config=configs(),
    drawn=st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=3),
    name=st.sampled_from(list(SUMMARIZERS)),
    windows=st.integers(1, 3),
    texts=texts_drawn,
)
def test_pages_and_batches_compute_what_plain_numpy_does(config: ModelConfig, drawn, name, windows: int, texts) -> None:
    ratios = tuple(None if number is None else config.sst.ratios[number] for number in drawn)
    plans, position = plans_of(config, windows, ratios, name)
    with tempfile.TemporaryDirectory() as folder:
        slow, *fast = loaded(folder, config, ["numpy", *TWINS])
        expected = hear(slow, windows, [[p] for p in plans])
        memory, said = slow.export_memory(expected), one_by_one(slow, expected, texts, position, set(), 4)
        for backend in fast:
            state = hear(backend, windows, list(interval_batches(plans)))
            for part, array in backend.export_memory(state).items():
                np.testing.assert_allclose(array, memory[part], atol=1e-4, rtol=1e-4)
            for ours, theirs in zip(together(backend, state, texts, position, set(), 4), said, strict=True):
                assert [s.token for s in ours] == [s.token for s in theirs]
                for mine, other in zip(ours, theirs, strict=True):
                    np.testing.assert_allclose(mine.slot_weights, other.slot_weights, atol=1e-4)


@pytest.mark.parametrize("name", TWINS)
@few
@given(
    config=configs(),
    raw=st.booleans(),
    bits=st.sampled_from([16, 8, 4]),
    windows=st.integers(1, 3),
    rule=st.sampled_from(list(SUMMARIZERS)),
    texts=texts_drawn,
)
def test_batches_give_what_one_at_a_time_gives(
    name: str, config, raw: bool, bits: int, windows: int, rule, texts
) -> None:
    """To 1e-5; packed rows may fall to a neighbouring code where numbers differ in the last digit."""
    plans, position = plans_of(config, windows, (None if raw else config.sst.ratios[1],), rule)
    with tempfile.TemporaryDirectory() as folder:
        (backend,) = loaded(folder, config, [name], bits)
        slow, fast = (
            hear(backend, windows, batches) for batches in ([[p] for p in plans], list(interval_batches(plans)))
        )
        ours, theirs = (backend.export_memory(state) for state in (fast, slow))
        for part in ours:
            apart = np.abs(ours[part] - theirs[part])
            assert apart.max() <= 1e-5 * max(1, np.abs(theirs[part]).max()) or (
                bits < 16 and (apart > 1e-5).mean() < 0.01
            )
        ends = {one_by_one(backend, slow, texts[:1], position, set(), 3)[0][-1].token}
        alone, both = (way(backend, slow, texts, position, ends, 5) for way in (one_by_one, together))
        assert [[s.token for s in steps] for steps in both] == [[s.token for s in steps] for steps in alone]
        for mine, other in zip(itertools.chain(*both), itertools.chain(*alone), strict=True):
            np.testing.assert_allclose(mine.slot_weights, other.slot_weights, atol=1e-5)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize(("rule", "bits"), [("sst", 16), ("window", 4), ("window", 16), ("pool", 8)])
def test_a_fork_shares_pages_and_neither_sees_the_other(
    name: str, rule: str, bits: int, tmp_path: Path, little_pages: int
) -> None:
    config = tiny_config()
    (backend,) = loaded(str(tmp_path), config, [name], bits)
    plans, _ = plans_of(config, 4, (4,), rule)
    state = hear(backend, 4, [[p] for p in plans[:3]])
    fork = backend.fork(state)
    for ours, theirs in zip(state.memory, fork.memory, strict=True):
        assert rule == "window" or len(ours.pages) == -(-ours.length // little_pages)
        assert all(a.is_at(b) for a, b in zip(ours.pages, theirs.pages, strict=True))
    before, shared = backend.export_memory(fork), fork.memory[0].length // little_pages
    for plan in plans[3:]:
        backend.close_intervals([(state, [plan])])
    assert all(np.array_equal(backend.export_memory(fork)[part], before[part]) for part in before)
    for plan in plans[3:]:
        backend.close_intervals([(fork, [plan])])
    ours, theirs = (backend.export_memory(s) for s in (state, fork))
    assert all(np.array_equal(ours[part], theirs[part]) for part in ours)
    if rule == "sst":
        for layer, other in zip(state.memory, fork.memory, strict=True):
            is_shared = [a.is_at(b) for a, b in zip(layer.pages, other.pages, strict=True)]
            assert all(is_shared[:shared]) and not any(is_shared[shared:])
    assert backend.memory_bytes(state) == state.memory[0].length * backend.storage.bytes_per_slot(
        config, backend.itemsize
    )


@pytest.mark.parametrize("name", TWINS)
def test_packed_rows_are_packed_once_however_often_the_window_moves(name: str, tmp_path: Path, monkeypatch) -> None:
    config = tiny_config()
    module = import_module(f"{name}_backend.memory")
    packed, pack = [], module.pack
    monkeypatch.setattr(module, "pack", lambda rows, storage: packed.append(rows.shape[2]) or pack(rows, storage))
    (backend,) = loaded(str(tmp_path), config, [name], 4)
    plans, _ = plans_of(config, 6, (4,), "window")
    hear(backend, 6, [[p] for p in plans])
    rows = len(PREFIX) + sum(len(p.slot_positions) for p in plans)
    assert sum(p.evicted for p in plans) > 0
    assert sum(packed) == 2 * config.decoder.num_hidden_layers * rows  # keys and values


@pytest.mark.parametrize("name", TWINS)
def test_a_packed_window_is_as_good_after_a_long_time_as_at_once(name: str, tmp_path: Path) -> None:
    """Rows that were moved up many times differ from unpacked ones by half a step, as on the day they were packed."""
    config = tiny_config()
    arrays = {}
    for bits in (16, 4):
        (backend,) = loaded(str(tmp_path / str(bits)), config, [name], bits)
        plans, _ = plans_of(config, 6, (4,), "window")
        state = hear(backend, 6, [[p] for p in plans])
        arrays[bits] = backend.export_memory(state)["keys"][0]  # the first layer's rows depend on no packed ones
    apart = np.abs(arrays[4] - arrays[16]).mean(axis=(0, 2))
    spread = np.abs(arrays[16]).mean()
    assert apart.max() < 0.2 * spread and apart[: len(apart) // 2].mean() < 1.5 * apart[len(apart) // 2 :].mean()


@pytest.mark.parametrize("name", TWINS)
def test_work_is_done_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls, not seconds: batches instead of intervals and questions, evidence where it is shown, no memory in one piece."""
    horizon = dataclasses.replace(tiny_config().sst, horizon=0)
    config = tiny_config(sst=horizon, evidence_layers=(1,))
    (backend,) = loaded(str(tmp_path), config, [name])
    decoder = import_module(f"{name}_backend.decoder").Decoder
    attention = import_module(f"{name}_backend.attention").Attention
    memory = import_module(f"{name}_backend.memory").KeyValues
    calls: Counter[str] = Counter()

    def count(cls: type, method: str) -> None:
        original = getattr(cls, method)

        def counted(self, *arguments, **named):
            calls[method] += 1
            return original(self, *arguments, **named)

        monkeypatch.setattr(cls, method, counted)

    for cls, method in (
        (decoder, "intervals"),
        (decoder, "text"),
        (attention, "weigh"),
        (memory, "joined"),
        (attention, "queries"),
        (attention, "rotated"),
    ):
        count(cls, method)
    scheduler = Scheduler(16, FixedRatio(4), len(PREFIX), horizon=0)
    plans = list(scheduler.plan_all(20 * 16 + 5))
    batches = list(interval_batches(plans))
    assert [len(batch) for batch in batches] == [16, 4, 1]
    windows = -(-scheduler.tokens // config.tokens_per_window)
    backend_tokens = windows * config.tokens_per_window
    state = hear(backend, windows, [])
    calls.clear()
    assert backend_tokens >= scheduler.tokens
    for batch in batches:
        backend.close_intervals([(state, batch)])
    # Two layers: the first one's speech rows are read by nobody, only its SSTs' queries; the last layer has none.
    assert calls == {"intervals": 3, "queries": 3}
    calls.clear()
    found = together(backend, state, [[5, 6], [7, 8, 9], [1]], scheduler.base, set(), 4)
    assert [len(steps) for steps in found] == [4, 4, 4]
    assert calls == {"text": 4, "weigh": 4, "rotated": 8, **PROJECTIONS[name]}


def test_only_a_horizon_of_nothing_makes_batches() -> None:
    def sizes(horizon: int | None, ratios: tuple, rule: str = "sst", most: int = 4) -> list[int]:
        scheduler = Scheduler(8, ListedRatios(ratios), 2, SUMMARIZERS[rule].plan, horizon)
        plans = list(scheduler.plan_all(50))
        batches = list(interval_batches(plans, most))
        assert list(itertools.chain(*batches)) == plans
        return [len(batch) for batch in batches]

    assert sizes(0, (4,)) == [4, 2, 1]
    assert sizes(0, (4, 4, None, None, 2)) == [2, 2, 2, 1]
    assert sizes(None, (4,)) == sizes(3, (4,)) == [1] * 7
    assert sizes(0, (4,), "pool", 16) == [6, 1]
    assert max(sizes(0, (4,), "window")) == 1
