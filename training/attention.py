"""Attention of a whole pass in blocks: what a block of rows cannot see is neither computed nor kept.

On CUDA it is FlexAttention (arXiv 2412.05496), elsewhere a chunk of rows at a time against the columns that it may see,
with the mask of that chunk alone. Both ask speech_xl/visibility.py who sees whom; neither ever holds a mask of all rows
by all rows. It knows rows, no layers.

Letters: B = 1, H heads, R rows, C columns that a chunk may see, G query heads per key/value head.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from speech_xl.visibility import Rows, may_see, sees, visible

BLOCK = 128  # rows and columns: FlexAttention's own
KEPT_NUMBERS = (
    2**23
)  # of all chunks' masks: up to so many they are made once, for all layers and torch's fused attention


class BlockAttention:
    """attend(q, k, v) for the rows of one pass; q (1, H, R, head_dim), k and v (1, kv_heads, R, head_dim)."""

    def __init__(self, rows: Rows, device: torch.device):
        self._rows = tensors_of(rows, device)
        near = may_see(rows, rows, BLOCK)
        self._flex = flex_mask(self._rows, near, len(rows)) if device.type == "cuda" else None
        self.chunks = [
            (slice(i * BLOCK, min((i + 1) * BLOCK, len(rows))), runs(np.flatnonzero(columns), len(rows)))
            for i, columns in enumerate(near)
        ]
        numbers = sum((q.stop - q.start) * sum(c.stop - c.start for c in columns) for q, columns in self.chunks)
        self._is_small = numbers <= KEPT_NUMBERS
        self._kept: dict[torch.dtype, list[torch.Tensor]] = {}

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(1, H, R, head_dim) in the type of v: rotation makes float32 of autocast's queries and keys."""
        q, k = q.to(v.dtype), k.to(v.dtype)
        if self._flex is not None:
            return compiled_flex()(q, k, v, block_mask=self._flex, enable_gqa=q.shape[1] != k.shape[1])
        if not self._is_small:
            return ChunkedAttention.apply(q, k, v, self)
        masks = self._kept_masks(q.dtype)
        out = [
            F.scaled_dot_product_attention(
                q[:, :, rows], at(k, columns), at(v, columns), attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
            )
            for (rows, columns), mask in zip(self.chunks, masks, strict=True)
        ]
        return torch.cat(out, dim=2)

    def mask(self, chunk: int) -> torch.Tensor:
        """(rows of the chunk, C) bool."""
        rows, columns = self.chunks[chunk]
        keys = Rows(**{name: torch.cat([array[c] for c in columns]) for name, array in vars(self._rows).items()})
        return visible(self._rows[rows], keys)

    def _kept_masks(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Every chunk's mask as numbers to add, so that all layers keep the same ones for their backward pass."""
        if dtype not in self._kept:
            masks = [self.mask(i) for i in range(len(self.chunks))]
            self._kept[dtype] = [torch.zeros_like(m, dtype=dtype).masked_fill_(~m, -torch.inf) for m in masks]
        return self._kept[dtype]


def tensors_of(rows: Rows, device: torch.device) -> Rows:
    """The same numbers as int32 tensors."""
    return Rows(
        **{
            name: torch.from_numpy(np.asarray(array if array.dtype == bool else array.astype(np.int32))).to(device)
            for name, array in vars(rows).items()
        }
    )


def runs(blocks: np.ndarray, count: int) -> list[slice]:
    """Ascending numbers of blocks as few slices of the `count` columns."""
    parts = np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1)
    return [slice(int(part[0]) * BLOCK, min((int(part[-1]) + 1) * BLOCK, count)) for part in parts]


def flex_mask(rows: Rows, near: np.ndarray, count: int) -> BlockMask:
    """FlexAttention's block mask of a pass: the blocks that are worked on, and who sees whom in them."""
    device = rows.stretch.device
    indices = np.argsort(~near, axis=1, kind="stable").astype(np.int32)  # the near ones first, in order
    counts = near.sum(1).astype(np.int32)
    return BlockMask.from_kv_blocks(
        torch.from_numpy(counts)[None, None].to(device),
        torch.from_numpy(indices)[None, None].to(device),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda b, h, i, j: sees(rows[i], rows[j]),
        seq_lengths=(count, count),
    )


@lru_cache(maxsize=1)
def compiled_flex() -> Any:
    """FlexAttention as one kernel, for any number of rows."""
    return torch.compile(flex_attention, dynamic=True)


class ChunkedAttention(torch.autograd.Function):
    """Softmax attention, chunk by chunk in float32. Backward computes each chunk's weights again from its normaliser.

    As FlashAttention (arXiv 2205.14135) does it: what is kept grows with the rows, not with rows times columns.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: BlockAttention) -> torch.Tensor:
        """(1, H, R, head_dim); the normaliser of every row is kept for `backward`."""
        out = torch.empty_like(q)
        normalisers = []
        with full_precision(q.device):
            for i, (rows, columns) in enumerate(plan.chunks):
                weights = scores(q[:, :, rows], at(k, columns).float(), plan.mask(i))
                normaliser = weights.logsumexp(-1, keepdim=True)
                weights = weights.sub_(normaliser).exp_()
                out[:, :, rows] = (
                    (weights @ at(v, columns).float()).unflatten(2, (-1, rows.stop - rows.start)).flatten(1, 2)
                )
                normalisers.append(normaliser)
        ctx.save_for_backward(q, k, v, out, *normalisers)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """Gradients of q, k and v, chunk by chunk."""
        q, k, v, out, *normalisers = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        group = q.shape[1] // k.shape[1]
        with full_precision(q.device):
            for i, (rows, columns) in enumerate(ctx.plan.chunks):
                count = rows.stop - rows.start
                keys, values = at(k, columns).float(), at(v, columns).float()
                queries, upstream = grouped(q[:, :, rows], group), grouped(grad[:, :, rows], group)
                weights = scores(q[:, :, rows], keys, ctx.plan.mask(i)).sub_(normalisers[i]).exp_()
                add_to(grad_v, columns, weights.transpose(-1, -2) @ upstream)
                share = (upstream * grouped(out[:, :, rows], group)).sum(-1, keepdim=True)
                slope = (upstream @ values.transpose(-1, -2)).sub_(share).mul_(weights).mul_(q.shape[-1] ** -0.5)
                grad_q[:, :, rows] = (slope @ keys).unflatten(2, (-1, count)).flatten(1, 2)
                add_to(grad_k, columns, slope.transpose(-1, -2) @ queries)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None


def full_precision(device: torch.device) -> torch.autocast:
    """A context without autocast, where the device has one."""
    kind = device.type if torch.amp.is_autocast_available(device.type) else "cpu"
    return torch.autocast(kind, enabled=False)


def grouped(rows: torch.Tensor, group: int) -> torch.Tensor:
    """(1, H, r, head_dim) -> (1, kv_heads, G * r, head_dim) float32: the query heads that share a key."""
    return rows.float().unflatten(1, (-1, group)).flatten(2, 3)


def at(rows: torch.Tensor, columns: list[slice]) -> torch.Tensor:
    """(1, kv_heads, C, head_dim)."""
    parts = [rows[:, :, c] for c in columns]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def scores(q: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(1, kv_heads, G * r, C) float32, -inf where a row does not see a column."""
    group = q.shape[1] // keys.shape[1]
    found = (grouped(q, group) * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    found.unflatten(2, (group, -1)).masked_fill_(~mask, -torch.inf)
    return found


def add_to(total: torch.Tensor, columns: list[slice], parts: torch.Tensor) -> None:
    """Add parts (1, kv_heads, C, head_dim) to the columns they belong to."""
    at = 0
    for c in columns:
        total[:, :, c] += parts[:, :, at : at + c.stop - c.start]
        at += c.stop - c.start
