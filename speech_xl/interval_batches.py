"""Which intervals can be heard as one batch: those that see nothing of one another.

Those of different recordings never do. Of one recording, with a listening horizon of 0 none does, with any other each
sees those before it. It knows plans, no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speech_xl.schedule import IntervalPlan

INTERVALS_AT_ONCE = 16  # enough for matrices that keep a device busy; a batch's activations grow with it


def interval_batches(plans: Sequence[IntervalPlan], most: int = INTERVALS_AT_ONCE) -> Iterator[list[IntervalPlan]]:
    """Consecutive plans of one recording in batches for Backend.close_intervals, at most `most` in each.

    Intervals of one batch have the same shape, see the prefix alone and evict nothing.
    """
    for batch in joint_batches([plans], most):
        yield batch[0]


def joint_batches(
    recordings: Sequence[Sequence[IntervalPlan]], most: int = INTERVALS_AT_ONCE
) -> Iterator[dict[int, list[IntervalPlan]]]:
    """The plans of several recordings, each one's in order, in batches: by a recording's number its plans of the batch.

    Each batch has intervals of one shape, at most `most`.
    """
    done = [0] * len(recordings)
    while left := [number for number, plans in enumerate(recordings) if done[number] < len(plans)]:
        # Whoever is least far goes first, so that recordings of the same kind stay side by side.
        left.sort(key=lambda number: done[number])
        shape = _shape(recordings[left[0]][done[left[0]]])
        batch: dict[int, list[IntervalPlan]] = {}
        room = most
        for number in left:
            if run := _run(recordings[number], done[number], shape, room):
                batch[number] = run
                done[number] += len(run)
                room -= len(run)
        yield batch


def _run(plans: Sequence[IntervalPlan], first: int, shape: tuple[object, ...], most: int) -> list[IntervalPlan]:
    """The plans from number `first` on that can be in one batch of that shape."""
    run: list[IntervalPlan] = []
    for plan in plans[first : first + most]:
        if _shape(plan) != shape or (run and not (_is_alone(run[0]) and _is_alone(plan))):
            break
        run.append(plan)
    return run


def _is_alone(plan: IntervalPlan) -> bool:
    """Whether the interval sees nothing of the memory but the prefix, and leaves all of it as it was."""
    return plan.hidden_from + plan.hidden == plan.base and not plan.evicted


def _shape(plan: IntervalPlan) -> tuple[object, ...]:
    slots = len(plan.slot_positions)
    return plan.tokens, plan.ratio, plan.ssts, slots, plan.attended, plan.selection is not None
