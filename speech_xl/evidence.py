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
    behind the recording's end.
    The weights of the result sum to at most 1.
    """
    weights = np.where(slot_times[:, 0] < slot_times[:, 1], weights, 0)
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
