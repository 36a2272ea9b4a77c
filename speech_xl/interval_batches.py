"""Which intervals can be heard as one batch: those that see nothing of one another.

With a listening horizon of 0 that is all of them, with any other it is none. It knows plans, no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speech_xl.schedule import IntervalPlan

INTERVALS_AT_ONCE = 16  # enough for matrices that keep a device busy; a batch's activations grow with it


def interval_batches(plans: Sequence[IntervalPlan], most: int = INTERVALS_AT_ONCE) -> Iterator[list[IntervalPlan]]:
    """Consecutive plans in batches for Backend.close_intervals, at most `most` in each.

    Intervals of one batch have the same shape, see the prefix alone and evict nothing.
    """
    batch: list[IntervalPlan] = []
    for plan in plans:
        if batch and not (len(batch) < most and _is_alone(plan) and _shape(plan) == _shape(batch[0])):
            yield batch
            batch = []
        batch.append(plan)
        if not _is_alone(plan):
            yield batch
            batch = []
    if batch:
        yield batch


def _is_alone(plan: IntervalPlan) -> bool:
    """Whether the interval sees nothing of the memory but the prefix, and leaves all of it as it was."""
    return plan.hidden_from + plan.hidden == plan.base and not plan.evicted


def _shape(plan: IntervalPlan) -> tuple[object, ...]:
    return plan.tokens, plan.ratio, plan.ssts, plan.kept, plan.attended, plan.selection is not None
