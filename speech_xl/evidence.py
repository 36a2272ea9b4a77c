"""From attention over memory slots to spans of the recording that a person can play.

It knows slots and seconds; no tensors, no text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEAST_SHARE = 0.15  # of the strongest slot's attention: weaker slots are background
LARGEST_GAP = 1.0  # seconds: slots no further apart than this are one stretch of talk
MOST_SPANS = 5
HEAT_PARTS = 300  # of the recording: what a person tells apart on a line


@dataclass(frozen=True)
class Evidence:
    """A stretch of the recording and the share of the answer's attention that it received."""

    start: float  # seconds
    end: float
    weight: float


def find_evidence(weights: np.ndarray, slot_times: np.ndarray) -> list[Evidence]:
    """Join strongly attended neighbouring slots into spans, strongest first.

    weights (M,) float: attention to each memory slot, prefix left out; slot_times (M, 2): its start and end in
    seconds, see AudioMemory. A slot without any duration is no evidence: some models keep tokens of the padding
    behind the recording's end. Nor is a weight that is no number, which a damaged memory's numbers may lead to.
    The weights of the result sum to at most 1.
    """
    weights = np.where((slot_times[:, 0] < slot_times[:, 1]) & np.isfinite(weights), weights, 0)
    if not len(weights) or weights.max() <= 0:
        return []
    strong = np.flatnonzero(weights >= LEAST_SHARE * weights.max())
    found: list[list[float]] = []
    for slot in strong:
        start, end = slot_times[slot].tolist()
        if found and start - found[-1][1] <= LARGEST_GAP:
            found[-1][1] = max(end, found[-1][1])
            found[-1][2] += float(weights[slot])
        else:
            found.append([start, end, float(weights[slot])])
    found.sort(key=lambda span: -span[2])
    total = max(1.0, sum(span[2] for span in found))
    return [
        # Rounded down, so that the sum of the printed weights stays within 1.
        Evidence(round(start, 2), round(end, 2), math.floor(weight / total * 1e4) / 1e4)
        for start, end, weight in found[:MOST_SPANS]
    ]


def evidence_heat(weights: np.ndarray, slot_times: np.ndarray, seconds: float) -> tuple[float, ...]:
    """How much an answer rests on each of HEAT_PARTS equal parts of the recording's `seconds`: 0 to 1, 1 the strongest.

    weights (M,) float and slot_times (M, 2) as in `find_evidence`. A slot's weight is spread over the time it stands
    for; slots below LEAST_SHARE of the strongest are background, as there. () where there is no evidence.
    """
    durations = slot_times[:, 1] - slot_times[:, 0]
    weights = np.where((durations > 0) & np.isfinite(weights), weights, 0)
    if not len(weights) or weights.max() <= 0 or seconds <= 0:
        return ()
    strong = np.flatnonzero(weights >= LEAST_SHARE * weights.max())
    heat, edges = np.zeros(HEAT_PARTS), np.linspace(0, seconds, HEAT_PARTS + 1)
    for slot in strong:
        overlap = np.minimum(edges[1:], slot_times[slot, 1]) - np.maximum(edges[:-1], slot_times[slot, 0])
        heat += weights[slot] * np.maximum(overlap, 0) / durations[slot]
    return tuple(np.round(heat / max(heat.max(), 1e-12), 3).tolist())
