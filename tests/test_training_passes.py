"""A pass of several packed recordings is each of them alone, and attention in blocks is attention; neither needs a square."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from speech_xl.config import ModelConfig
from speech_xl.prompt import Prompt
from speech_xl.schedule import ListedRatios, Scheduler, WholePass, whole_pass
from speech_xl.visibility import may_see
from tests.tiny import TOKENIZER, tiny_model, tiny_recognizer_config
from tests.tiny_training import recipe
from torch_backend.decoder import Decoder
from training import attention, losses
from training.attention import BLOCK, BlockAttention, ChunkedAttention, flex_mask
from training.batch import Batch, Batcher
from training.data import Question, Recording
from training.network import Network
from training.packing import passes_of, shares_of
from training.samples import Sample

CPU = torch.device("cpu")
SST = {"interval": 8, "ratios": [2, 4, 8], "default_ratio": 4}


def recording(tokens: int, horizon: int | None = None, listed: tuple = (None, 4, 2, 8)) -> WholePass:
    plans = list(Scheduler(32, ListedRatios(listed), 5, horizon=horizon).plan_all(tokens))
    return whole_pass(5, plans, [30, 20], views=[(0, len(plans)), (len(plans) // 2, len(plans))])


@pytest.mark.parametrize("kept", [2**23, 0], ids=["masks kept", "masks made anew"])
@pytest.mark.parametrize("heads, horizon", [((4, 2), None), ((3, 3), 16)])
def test_attention_in_blocks_is_attention(
    kept: int, heads: tuple[int, int], horizon: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "KEPT_NUMBERS", kept)
    torch.manual_seed(0)
    passed = recording(330, horizon)
    q, k, v = (torch.randn(1, h, len(passed.rows), 8, requires_grad=True) for h in (heads[0], heads[1], heads[1]))
    found = BlockAttention(passed.rows, CPU)(q, k, v)
    wanted = F.scaled_dot_product_attention(q, k, v, torch.from_numpy(passed.mask), enable_gqa=True)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, (q, k, v), upstream), torch.autograd.grad(wanted, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_mask_for_flex_attention_is_the_same_one() -> None:
    """Its kernel is CUDA's; torch computes the same without one, forwards."""
    torch.manual_seed(0)
    passed = recording(330)
    q, k, v = (torch.randn(1, 2, len(passed.rows), 8) for _ in range(3))
    mask = flex_mask(attention.tensors_of(passed.rows, CPU), may_see(passed.rows, passed.rows, BLOCK), len(passed.rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow without its kernel
        found = flex_attention(q, k, v, block_mask=mask)
    wanted = F.scaled_dot_product_attention(q, k, v, torch.from_numpy(passed.mask))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().size():
                self.numbers = max(self.numbers, tensor.untyped_storage().size() // tensor.element_size())
        return made


def test_no_tensor_has_rows_times_rows_numbers() -> None:
    passed = recording(32 * 180, listed=(8,))
    rows = len(passed.rows)
    q, k, v = (torch.randn(1, 1, rows, 4, requires_grad=True) for _ in range(3))
    sparse = BlockAttention(passed.rows, CPU)
    with Largest() as seen:
        ChunkedAttention.apply(q, k, v, sparse).sum().backward()
    assert seen.numbers < rows * rows / 20
    with Largest() as seen:
        sparse(q, k, v).sum().backward()
    assert seen.numbers < rows * rows / 20


@settings(max_examples=12, deadline=None)
@given(horizon=st.sampled_from([None, 0, 6]), pooled=st.booleans(), seed=st.integers(0, 99), step=st.integers(0, 99))
def test_a_packed_pass_has_the_losses_of_each_recording_alone(
    horizon: int | None, pooled: bool, seed: int, step: int
) -> None:
    chosen = recipe(
        {"transcripts": 0.5, "shift": 9, "max_tokens": 60}, sst=SST | {"horizon": horizon, "pooled": pooled}
    )
    config = tiny_recognizer_config(sst=chosen.sst)
    batcher, network = Batcher(Prompt(TOKENIZER, config.prompt), config, chosen.stages[0], seed), network_of(config)
    samples = talks(seed)
    (batch,) = batcher.training(samples, range(10, 10 + len(samples)), step, 1.0, None)
    together, figures = batcher.losses(network, batch, CPU)
    alone = []
    for i, sample in enumerate(samples):
        (one,) = batcher.training([sample], [10 + i], step, 1.0, None)
        alone.append(batcher.losses(network, one, CPU)[0])
        torch.testing.assert_close(alone[-1], dense_losses(network.decoder, one), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert sum(f[2] for f in figures.values()) == len(batch.targets)


def network_of(config: ModelConfig) -> Network:
    network = Network(config)
    network.load_state_dict({n: t for n, t in tiny_model(config).state_dict().items() if n.startswith("decoder.")})
    return network


def talks(seed: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(3):
        words = rng.integers(3, 200, rng.integers(1, 40)).astype(np.int32)
        asked = tuple(Question(f"what {j}?", "a b c"[: j + 1]) for j in range(i))
        made.append(Sample(len(words), Recording("here", heard="a", questions=asked), words=words))
    return made


def dense_losses(decoder: Decoder, batch: Batch) -> torch.Tensor:
    """The same by `Decoder.whole`, with a square mask and all logits."""
    ids = torch.from_numpy(np.concatenate([batch.prefix_ids, batch.speech.rows]))
    text = decoder.embed_tokens(torch.from_numpy(batch.text_ids))
    x = torch.cat([decoder.embed_tokens(ids), decoder.sst_embedding.expand(batch.ssts, -1), text])[None]
    mask = torch.from_numpy(attention.visible(batch.rows, batch.rows))[None, None]
    pooled = None
    if batch.pooled and batch.ssts:
        parts = [(c.tokens + c.rows.start, c.columns) for c in batch.pooled]
        pooled = tuple(torch.from_numpy(np.concatenate(arrays, 1)) for arrays in zip(*parts, strict=True))
    positions = (torch.from_numpy(p)[None] for p in (batch.query_positions, batch.key_positions))
    x = decoder.whole(x, *positions, mask, slice(len(ids), len(ids) + batch.ssts), pooled)
    logits = decoder.logits(x[0, len(ids) + batch.ssts :])[torch.from_numpy(batch.answer_rows)]
    return F.cross_entropy(logits, torch.from_numpy(batch.targets), reduction="none")


def test_losses_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = network_of(tiny_recognizer_config()).decoder
    x, targets = torch.randn(17, 32, requires_grad=True), torch.arange(17)
    found: list[tuple] = []
    for numbers in (2**26, 5 * decoder.config.vocab_size):
        monkeypatch.setattr(losses, "LOGITS", numbers)
        loss, right = losses.token_losses(decoder, x, targets)
        found.append((loss, right, *torch.autograd.grad(loss.sum(), (x, decoder.embed_tokens.weight))))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def rows_of(lengths: list[int], part: list[int]) -> int:
    return sum(lengths[i] for i in part)


@given(st.lists(st.integers(1, 60), min_size=4, max_size=30), st.integers(1, 4))
def test_packed_passes_hold_every_recording_once_and_keep_to_their_rows(lengths: list[int], processes: int) -> None:
    stage = recipe({"pack": 50, "batch": 40}).stages[0]
    passes = passes_of(lengths, stage)
    assert sorted(i for part in passes for i in part) == list(range(len(lengths)))
    assert all(len(part) == 1 or rows_of(lengths, part) <= 50 for part in passes)
    half_empty = [part for part in passes if rows_of(lengths, part) <= 25]
    assert len(half_empty) <= 1
    shares = shares_of(lengths, processes, stage)
    assert sorted(i for part in shares for i in part) == list(range(len(lengths))) and all(shares)
    loads = [rows_of(lengths, part) for part in shares]
    assert max(loads) - min(loads) <= max(lengths) or processes == 1


def test_a_packing_stage_learns_as_one_that_takes_all_at_once(packed_losses: Callable[[dict], list[float]]) -> None:
    whole, packed = packed_losses({}), packed_losses({"pack": 70})
    np.testing.assert_allclose(packed, whole, rtol=1e-4)


@pytest.fixture
def packed_losses(tmp_path: Path) -> Callable[[dict], list[float]]:
    from tests.tiny_training import TALKS, hearing_checkpoint, metrics, train, write_lines

    model = hearing_checkpoint(tmp_path / "tiny")
    data = write_lines(tmp_path / "l.jsonl", TALKS)

    def losses_of(change: dict) -> list[float]:
        out = tmp_path / f"out{len(change)}"
        train(model, out, recipe({"batch": 4, "steps": 3} | change), data)
        return list(metrics(out)["loss"].values())

    return losses_of
