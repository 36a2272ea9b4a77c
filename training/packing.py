"""Recordings packed into passes without padding: which share a pass, and their rows side by side as one pass's rows.

All recordings have the same prefix, so a pass has it once. It knows rows and lengths, no tokens and no network.

Letters: P prefix rows of every recording, R rows of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from speech_xl.schedule import WholePass
from speech_xl.visibility import Rows
from training.recipe import Stage


def shares_of(sizes: Sequence[float], count: int, stage: Stage) -> list[list[int]]:
    """Which recordings of a step each of `count` processes takes, in the order of the step; at least one each.

    Where the stage packs, the longest go first, each to whoever has least; else they are counted out.
    """
    if stage.pack is None:
        return [part.tolist() for part in np.array_split(np.arange(len(sizes)), count)]
    shares: list[list[int]] = [[] for _ in range(count)]
    for i in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        min(shares, key=lambda share: (bool(share), sum(sizes[j] for j in share))).append(i)
    return [sorted(share) for share in shares]


def passes_of(lengths: Sequence[int], stage: Stage) -> list[list[int]]:
    """Which recordings of a process's share go through the network together: `accumulation` passes, or as many as it
    takes with at most `pack` rows each, the longest first. One that is longer goes alone.
    """
    if stage.pack is None:
        return [part.tolist() for part in np.array_split(np.arange(len(lengths)), stage.accumulation)]
    passes: list[list[int]] = []
    rows: list[int] = []
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        place = next((j for j, used in enumerate(rows) if used + lengths[i] <= stage.pack), None)
        if place is None:
            passes.append([i])
            rows.append(lengths[i])
        else:
            passes[place].append(i)
            rows[place] += lengths[i]
    return [sorted(part) for part in passes]


def joined_in_order(passes: Sequence[WholePass], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """(R,): an array of each recording's rows as one of the pass's: the prefix once, then the speech of all, then the
    SSTs of all, then their texts.
    """
    starts = [np.cumsum([w.prefix, w.speech, w.ssts]) for w in passes]
    parts = [arrays[0][: passes[0].prefix]]
    for kind in range(3):
        parts += [np.split(a, s)[kind + 1] for a, s in zip(arrays, starts, strict=True)]
    return np.concatenate(parts)


def joined_rows(passes: Sequence[WholePass]) -> Rows:
    """The rows of a pass: stretches and memory slots get numbers that no other recording of it has."""
    told_apart, stretches, texts, slots = [], 0, 0, 0
    for w in passes:
        rows = w.rows
        behind = rows.slot >= w.prefix
        told_apart.append(
            replace(
                rows,
                stretch=rows.stretch + stretches * (rows.stretch > 0) - texts * (rows.stretch < 0),
                slot=rows.slot + slots * behind,
                first=rows.first + slots,
                stop=rows.stop + slots,
            )
        )
        stretches, texts = stretches + int(max(rows.stretch, default=0)), texts - int(min(rows.stretch, default=0))
        slots += int(max(rows.slot.max(initial=-1) + 1, rows.stop.max(initial=0)))
    return Rows(
        **{name: joined_in_order(passes, [vars(rows)[name] for rows in told_apart]) for name in vars(told_apart[0])}
    )
