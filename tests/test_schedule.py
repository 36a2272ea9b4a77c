"""The schedule against an independent, slow statement of its rule, over random lengths, ratios and prefixes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl.errors import ScheduleError
from speech_xl.schedule import (
    FixedRatio,
    ListedRatios,
    Scheduler,
    StepRandomRatio,
    check_ratio,
    format_bytes,
    memory_slots,
    ratio_for_budget,
    slots_kept,
    sst_slots,
    whole_pass,
)
from speech_xl.summarizers import AppendedSSTs
from speech_xl.visibility import may_see, visible

ratios = st.sampled_from([None, 1, 2, 3, 4, 6, 12])
cases = st.tuples(st.integers(0, 60), st.integers(0, 3), st.lists(ratios, min_size=1, max_size=6))


def plans_of(tokens: int, prefix: int, listed: list[int | None]) -> tuple[Scheduler, list]:
    scheduler = Scheduler(12, ListedRatios(tuple(listed)), prefix)
    return scheduler, list(scheduler.plan_all(tokens))


@given(st.integers(1, 200), st.integers(1, 40))
def test_every_token_is_summarized_by_the_next_sst(n: int, ratio: int) -> None:
    after = sst_slots(n, ratio)
    assert len(after) == math.ceil(n / ratio) == slots_kept(n, ratio)
    assert list(after) == [min((c + 1) * ratio, n) - 1 for c in range(len(after))]
    assert after[-1] == n - 1  # a ragged tail has its SST too


@given(cases)
def test_memory_and_clock(case: tuple[int, int, list[int | None]]) -> None:
    tokens, prefix, listed = case
    scheduler, plans = plans_of(tokens, prefix, listed)
    base = prefix
    for i, plan in enumerate(plans):
        n = min(12, tokens - 12 * i)
        ratio = listed[min(i, len(listed) - 1)]
        assert (plan.index, plan.first_token, plan.tokens, plan.ratio, plan.base) == (i, 12 * i, n, ratio, base)
        assert plan.kept == (n if ratio is None else math.ceil(n / ratio))
        assert list(plan.speech_positions) == [base + t for t in range(n)]
        assert list(plan.slot_positions) == [base + c for c in range(plan.kept)]
        assert list(plan.sst_query_positions) == [base + t for t in plan.sst_after]
        base += plan.kept
    assert scheduler.base == base and scheduler.tokens == tokens
    if len(set(listed)) == 1:
        assert base == prefix + memory_slots(tokens, 12, listed[0])


@given(cases)
def test_slot_spans_tile_the_recording(case: tuple[int, int, list[int | None]]) -> None:
    tokens, prefix, listed = case
    _, plans = plans_of(tokens, prefix, listed)
    spans = np.concatenate([np.zeros((0, 2), np.int64), *[p.spans for p in plans]])
    assert spans[:, 0].tolist() == [0, *spans[:-1, 1].tolist()][: len(spans)]
    assert (spans[-1, 1] if len(spans) else 0) == tokens


@settings(max_examples=40, deadline=None)
@given(cases, st.lists(st.integers(1, 3), max_size=3))
def test_visibility_is_the_table(case: tuple[int, int, list[int | None]], texts: list[int]) -> None:
    tokens, prefix, listed = case
    _, plans = plans_of(tokens, prefix, listed)
    passed = whole_pass(prefix, plans, texts)
    rows: list[tuple] = [("prefix", None, j) for j in range(prefix)]
    rows += [("speech", p, t) for p in plans for t in range(p.tokens)]
    rows += [("sst", p, c) for p in plans for c in range(p.ssts)]
    rows += [("text", b, u) for b, n in enumerate(texts) for u in range(n)]
    assert passed.mask.shape == (len(rows), len(rows))

    def sees(query: tuple, key: tuple) -> bool:
        kind, where, at = query
        other, other_where, other_at = key
        if other == "prefix":
            return kind != "prefix" or other_at <= at
        if kind == "prefix":
            return False
        if other == "text":
            return kind == "text" and other_where == where and other_at <= at
        in_memory = other == "sst" or other_where.ratio is None  # once its interval is closed
        if kind == "text":
            return in_memory
        if other_where.index < where.index:
            return in_memory
        if other_where.index > where.index:
            return False
        if other == "sst":
            return kind == "sst" and other_at == at
        return other_at <= (at if kind == "speech" else where.sst_after[at])

    expected = np.array([[sees(q, k) for k in rows] for q in rows], bool).reshape(passed.mask.shape)
    assert np.array_equal(passed.mask, expected)


@given(cases, st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_text_stands_behind_the_memory(case: tuple[int, int, list[int | None]], texts: list[int]) -> None:
    tokens, prefix, listed = case
    scheduler, plans = plans_of(tokens, prefix, listed)
    positions = whole_pass(prefix, plans, texts).query_positions
    expected = [scheduler.base + u for n in texts for u in range(n)]
    assert positions[len(positions) - len(expected) :].tolist() == expected


@given(cases)
def test_appended_ssts_stand_behind_their_whole_interval(case: tuple[int, int, list[int | None]]) -> None:
    tokens, prefix, listed = case
    scheduler, plans = plans_of(tokens, prefix, listed)
    appended = Scheduler(12, ListedRatios(tuple(listed)), prefix, AppendedSSTs().plan)
    for plan, other in zip(plans, appended.plan_all(tokens), strict=True):
        assert other.sst_mask()[:, : plan.tokens].all() and np.array_equal(
            other.sst_mask()[:, plan.tokens :], np.eye(plan.ssts)
        )
        assert other.sst_query_positions.tolist() == [plan.base + plan.tokens + c for c in range(plan.ssts)]
        assert np.array_equal(other.slot_positions, plan.slot_positions) and np.array_equal(other.spans, plan.spans)
        assert not plan.ssts or np.array_equal(other.pooled_tokens(), plan.pooled_tokens())
    assert appended.base == scheduler.base


def test_skipped_positions_move_intervals_and_text_but_not_visibility() -> None:
    _, plans = plans_of(24, 1, [4])
    plain, moved = (whole_pass(1, plans, [2], skipped) for skipped in (None, np.array([0, 5, 9])))
    assert np.array_equal(plain.mask, moved.mask)
    difference = moved.query_positions - plain.query_positions
    assert difference.tolist() == [0] + [0] * 12 + [5] * 12 + [0] * 3 + [5] * 3 + [9] * 2


def test_step_random_depends_on_seed_sample_and_interval_alone() -> None:
    policy = StepRandomRatio((None, 2, 4, 8), seed=3, sample=5)
    drawn = [policy.ratio(i) for i in range(50)]
    assert drawn == [StepRandomRatio((None, 2, 4, 8), 3, 5).ratio(i) for i in range(50)]
    assert set(drawn) == {None, 2, 4, 8}
    assert drawn != [StepRandomRatio((None, 2, 4, 8), 3, 6).ratio(i) for i in range(50)]


@given(st.integers(0, 5000), st.integers(1, 100_000))
def test_budget_takes_the_smallest_ratio_that_fits(tokens: int, budget_slots: int) -> None:
    try:
        chosen = ratio_for_budget(budget_slots * 10, tokens, 48, (16, 2, 4, 8), bytes_per_slot=10, prefix=1)
    except ScheduleError as error:
        assert 1 + memory_slots(tokens, 48, 16) > budget_slots
        assert "would do" in str(error)
        return
    order = [None, 2, 4, 8, 16]
    assert 1 + memory_slots(tokens, 48, chosen) <= budget_slots
    for smaller in order[: order.index(chosen)]:
        assert 1 + memory_slots(tokens, 48, smaller) > budget_slots


@given(st.integers(0, 2**40))
def test_printed_budgets_are_enough(count: int) -> None:
    text = format_bytes(count)
    number = float(text.rstrip("KMGiB"))
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text.rstrip("iB")[-1:], 1)
    assert number * unit >= count * (1 - 1e-5)  # %g prints six digits


@pytest.mark.parametrize(("ratio", "interval", "sentence"), [(3, 12, "not one that"), (8, 12, "does not divide")])
def test_a_ratio_that_cannot_be_is_refused_with_a_sentence(ratio: int, interval: int, sentence: str) -> None:
    with pytest.raises(ScheduleError, match=sentence):
        check_ratio(ratio, interval, (2, 4, 8))


def test_a_scheduler_refuses_a_ratio_that_does_not_divide_its_interval() -> None:
    with pytest.raises(ScheduleError, match="does not divide"):
        Scheduler(10, FixedRatio(4)).next(10)


@settings(max_examples=40, deadline=None)
@given(cases, st.sampled_from([None, 0, 3]), st.data())
def test_a_block_of_the_mask_is_that_of_its_rows_and_columns(
    case: tuple[int, int, list[int | None]], horizon: int | None, data: st.DataObject
) -> None:
    tokens, prefix, listed = case
    plans = list(Scheduler(12, ListedRatios(tuple(listed)), prefix, horizon=horizon).plan_all(tokens))
    passed = whole_pass(prefix, plans, [2, 3], views=[(0, len(plans)), (0, len(plans) // 2)])
    bound = st.integers(0, len(passed.mask))
    rows, columns = (slice(*sorted(data.draw(st.tuples(bound, bound)))) for _ in range(2))
    assert np.array_equal(visible(passed.rows[rows], passed.rows[columns]), passed.mask[rows, columns])
    size = data.draw(st.integers(1, 20))
    near = np.repeat(np.repeat(may_see(passed.rows, passed.rows, size), size, 0), size, 1)
    assert not (passed.mask & ~near[: len(passed.mask), : len(passed.mask)]).any()
    for plan in plans:  # what an interval's own plan says of its rows is what the whole pass says
        own = np.flatnonzero(passed.rows.stretch == 1 + plan.index)
        assert np.array_equal(visible(plan.rows(), plan.rows()), passed.mask[np.ix_(own, own)])
        assert np.array_equal(plan.sst_mask(), passed.mask[np.ix_(own[plan.tokens :], own)])
