"""A token with static shapes, as CUDA graphs replay it: the same answers as the ordinary path, and what a graph may not do.

There is no GPU here. A stand-in for the capture does on each replay what a graph would do: the recorded work, on the same
tensors. Whether a GPU captures it is not shown.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from speech_xl.config import ModelConfig
from speech_xl.interval_batches import interval_batches
from speech_xl.storage import MEMORY_BITS
from tests.test_pages import PREFIX, hear, loaded, plans_of, texts_drawn, together
from tests.tiny import configs, tiny_config
from torch_backend import graphs

few = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])


class Replayed:
    """Counts what a real capture would be asked for; `fails` as one that is impossible."""

    def __init__(self, fails: bool = False):
        self.fails, self.warmed, self.captured, self.replays = fails, 0, 0, 0

    def warm_up(self, work: Callable[[], None]) -> None:
        self.warmed += 1
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")

        def replay() -> None:
            self.replays += 1
            work()

        return replay


@pytest.fixture(autouse=True, scope="module", params=[3])
def little_room(request: pytest.FixtureRequest):
    """Pages of a few slots and caches of a few columns, so that a short answer fills several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_backend.memory.PAGE_SLOTS", request.param)
        patch.setattr(graphs, "ROOM", request.param)
        patch.setattr(graphs, "WARM_UP", 1)
        yield


def assert_same(ours: list[list], theirs: list[list]) -> None:
    assert [[s.token for s in steps] for steps in ours] == [[s.token for s in steps] for steps in theirs]
    for mine, other in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        np.testing.assert_allclose(mine.slot_weights, other.slot_weights, atol=1e-5)


@few
@given(
    config=configs(),
    drawn=st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=3),
    bits=st.sampled_from(MEMORY_BITS),
    windows=st.integers(1, 3),
    texts=texts_drawn,
    fails=st.booleans(),
)
def test_fixed_steps_answer_as_the_ordinary_path(
    config: ModelConfig, drawn, bits: int, windows: int, texts, fails: bool
) -> None:
    """Several texts of different lengths, some of which end earlier, also where a capture turns out to be impossible."""
    plans, position = plans_of(config, windows, tuple(None if n is None else config.sst.ratios[n] for n in drawn))
    with tempfile.TemporaryDirectory() as folder:
        (backend,) = loaded(folder, config, ["torch"], bits)
        state = hear(backend, windows, list(interval_batches(plans)))
        ends = {together(backend, state, texts[:1], position, set(), 3)[0][-1].token}
        ordinary = together(backend, state, texts, position, ends, 9)
        backend._capture = capture = Replayed(fails)
        assert_same(together(backend, state, texts, position, ends, 9), ordinary)
        is_long = max(map(len, ordinary)) > 3
        assert capture.warmed > 0 or not is_long
        if fails and capture.captured:
            assert capture.captured == 1 and backend._capture is None and not capture.replays


def test_a_graph_is_captured_again_where_texts_leave_or_the_cache_is_full(tmp_path) -> None:
    config = tiny_config()
    plans, position = plans_of(config, 2, (4,))
    (backend,) = loaded(str(tmp_path), config, ["torch"])
    state = hear(backend, 2, [[p] for p in plans])
    texts = [[5, 6], [7, 8, 9]]
    backend._capture = capture = Replayed()
    together(backend, state, texts, position, set(), 10)
    # The question is read at once; nine tokens are three caches of three columns, each warmed up by one step.
    assert (capture.warmed, capture.captured, capture.replays) == (3, 3, 6)


def test_spans_are_answered_from_their_own_columns(tmp_path) -> None:
    config = tiny_config()
    plans, _ = plans_of(config, 3, (4,))
    (backend,) = loaded(str(tmp_path), config, ["torch"])
    state = hear(backend, 3, [[p] for p in plans])
    spans = [(0, 4), (2, 9), (4, 6)]
    found = []
    for capture in (None, Replayed()):
        backend._capture = capture
        found.append(backend.answer_spans(state, len(PREFIX), spans, [5, 6, 7], {1}, 7))
    assert found[0] == found[1] and capture.replays > 0


class Operations(TorchDispatchMode):
    """What is computed: each operation with the shapes and strides that it is given and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None) -> Any:
        out = function(*arguments, **(named or {}))
        tensors = [t for t in torch.utils._pytree.tree_leaves((arguments, out)) if isinstance(t, torch.Tensor)]
        self.seen.append((str(function), *((tuple(t.shape), t.stride()) for t in tensors)))
        return out


@pytest.mark.parametrize("bits", MEMORY_BITS)
@pytest.mark.parametrize("rule", ["sst", "window"])  # a window's pages are turned
def test_a_step_makes_nothing_on_the_host_waits_for_nothing_and_never_changes(bits: int, rule: str, tmp_path) -> None:
    config = tiny_config()
    plans, position = plans_of(config, 6, (4,), rule)
    (backend,) = loaded(str(tmp_path), config, ["torch"], bits)
    state = hear(backend, 6, [[p] for p in plans])
    assert rule == "sst" or any(page.turn for page in state.memory[0].pages)
    recorded: list[list[tuple]] = []

    class Recording(Replayed):
        def warm_up(self, work: Callable[[], None]) -> None:
            with Operations() as operations:
                work()
            recorded.append(operations.seen)

    backend._capture = Recording()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "WARM_UP", 99)
        together(backend, state, [[5, 6], [7, 8, 9]], position, set(), 4)
    assert len(recorded) == 3 and recorded[0] == recorded[1] == recorded[2]
    names = {operation for operation, *_ in recorded[0]}
    forbidden = "_local_scalar_dense", "lift_fresh", "nonzero", "is_same_size", "unique", "equal", "scalar_tensor"
    assert not [name for name in names if any(f".{word}" in name for word in forbidden)]
    assert "aten.index_copy_.default" in names
