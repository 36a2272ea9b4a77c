"""Listening, asking and evidence: what events say, what answers carry, and what cancelling leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from speech_xl import listening_together
from speech_xl.allocator import release_free_memory
from speech_xl.asking import before_stop, find_stop
from speech_xl.config import HOP_LENGTH
from speech_xl.conversation import Listening, ask
from speech_xl.errors import QuestionError
from speech_xl.evidence import HEAT_PARTS, evidence_heat, find_evidence
from speech_xl.model import SpeechModel
from speech_xl.prefetch import Levels, WindowReader
from tests.tiny import sound, tiny_config, write_sound


def reader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "speech-xl-reader"]


def test_events_tell_what_was_heard(tiny_speech_model: SpeechModel, recording: Path) -> None:
    listening = Listening(tiny_speech_model, recording, 4)
    events = list(listening)
    assert [e.interval for e in events] == list(range(len(events)))
    assert [e.interval_start for e in events[1:]] == [e.interval_end for e in events[:-1]]
    assert events[-1].seconds == pytest.approx(7.33, abs=1e-3) and events[-1].total_seconds == pytest.approx(7.33)
    assert [e.tokens for e in events] == [16, 32, 48, 64, 80, 92]
    per_slot = tiny_speech_model.bytes_per_slot
    assert all(e.memory_bytes == e.slots * per_slot and e.raw_bytes == (1 + e.tokens) * per_slot for e in events)
    assert all(-40 < e.level < 0 for e in events)


@pytest.mark.parametrize(("horizon", "times"), [(0, [1, 2, 3]), (64, [1, 1, 1, 1, 1, 1])])
def test_groups_of_windows_grow_where_intervals_stand_alone(horizon: int, times: list[int], tmp_path: Path) -> None:
    config = tiny_config(sst__horizon=horizon)
    half_minute = round(30 * 16_000 / (config.encoder.hop_frames * HOP_LENGTH))
    path = write_sound(tmp_path / "long.wav", 200)
    *sizes, _ = [len(group.windows) for group in WindowReader(path, config)]
    assert sizes == [n * half_minute for n in times]


def test_levels_tell_speech_from_silence(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    import soundfile as sf

    loud = sound(16 * 0.08)
    sf.write(tmp_path / "half.wav", np.concatenate([loud, np.zeros_like(loud)]), 16_000)
    first, second = Listening(tiny_speech_model, tmp_path / "half.wav")
    assert first.level > -20 and second.level == -100


def test_a_snapshot_is_what_was_heard_so_far_and_listening_goes_on(
    tiny_speech_model: SpeechModel, tmp_path: Path
) -> None:
    whole = write_sound(tmp_path / "whole.wav", 60)
    undisturbed = Listening(tiny_speech_model, whole)
    list(undisturbed)
    listening = Listening(tiny_speech_model, whole)
    events = iter(listening)
    for _ in range(3):
        event = next(events)
    early = listening.snapshot()
    assert event.seconds <= early.seconds < 60 and early.tokens >= event.tokens
    assert early.spans[-1, 1] == early.tokens
    assert list(ask(tiny_speech_model, early, "a?", longest=3)) is not None
    for _ in events:
        pass
    exports = [tiny_speech_model.backend.export_memory(x.memory.state)["values"] for x in (undisturbed, listening)]
    assert np.array_equal(*exports)


def test_cancelling_stops_the_reader_and_leaves_no_memory(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    listening = Listening(tiny_speech_model, write_sound(tmp_path / "long.wav", 300))
    for number, _ in enumerate(listening):
        if number == 2:
            listening.cancel()
    assert number < 30 and not reader_threads()
    with pytest.raises(RuntimeError):
        _ = listening.memory


def test_freed_memory_is_given_back_while_listening_and_at_its_end(
    tiny_speech_model: SpeechModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(listening_together, "release_free_memory", lambda: calls.append(len(listening._past)))
    listening = Listening(tiny_speech_model, write_sound(tmp_path / "talk.wav", 40.0), 8)
    list(listening)
    every = listening_together.INTERVALS_PER_RELEASE
    assert calls == [*range(every, len(listening._past) + 1, every), len(listening._past)] and len(calls) > 2


def test_freed_memory_leaves_the_process() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a process's own memory here")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = [np.ones(10_000, np.float64) for _ in range(2000)]  # each below the size that gets a mapping of its own
    full = resident()
    kept = blocks[-1]
    del blocks
    release_free_memory()
    assert full - resident() > 100 * 2**20 and kept.all()


def test_leaving_the_loop_stops_the_reader(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    events = iter(Listening(tiny_speech_model, write_sound(tmp_path / "long.wav", 300)))
    next(events)
    events.close()
    assert not reader_threads()


def test_pieces_join_to_the_answer(tiny_speech_model: SpeechModel, recording: Path) -> None:
    listening = Listening(tiny_speech_model, recording)
    list(listening)
    asking = ask(tiny_speech_model, listening.memory, "what drink is order 4?", longest=20)
    assert "".join(asking).strip() == asking.answer.answer
    assert asking.answer.question == "what drink is order 4?" and asking.answer.seconds > 0


def test_an_answer_ends_before_a_stop(tiny_speech_model: SpeechModel, recording: Path) -> None:
    listening = Listening(tiny_speech_model, recording)
    list(listening)
    whole = ask(tiny_speech_model, listening.memory, "a?", longest=20)
    list(whole)
    text = whole.answer.answer
    for start, end in ((3, 5), (0, 1), (2, len(text))):  # across tokens, at once, and all the rest
        asking = ask(tiny_speech_model, listening.memory, "a?", longest=20, stop=["\N{SNOWMAN}", text[start:end]])
        pieces = list(asking)
        assert "".join(pieces) == asking.answer.answer == text[: text.find(text[start:end])]
        assert asking.answer.finish_reason == "stop" and asking.answer.tokens <= whole.answer.tokens
    never = ask(tiny_speech_model, listening.memory, "a?", longest=20, stop=["\N{SNOWMAN}", text + "x"])
    assert "".join(never) == text and never.answer == dataclasses.replace(whole.answer, seconds=never.answer.seconds)


def test_what_may_begin_a_stop_is_held_back() -> None:
    assert before_stop("one two", ["two three"]) == 4 and before_stop("one two", ["x", "o!"]) == 6
    assert before_stop("aab", ["ab!", "b?"]) == 1 and before_stop("", ["a"]) == 0 and before_stop("abc", []) == 3
    assert find_stop("one two", ["two", "ne"]) == 1 and find_stop("one", ["x"]) is None


@pytest.mark.parametrize("question", ["", " \n", "x" * 5000])
def test_a_question_that_cannot_be_asked_is_refused_at_once(
    tiny_speech_model: SpeechModel, recording: Path, question: str
) -> None:
    listening = Listening(tiny_speech_model, recording)
    list(listening)
    with pytest.raises(QuestionError):
        ask(tiny_speech_model, listening.memory, question)


def test_heat_is_strongest_where_the_attention_is_and_nowhere_else() -> None:
    times = np.array([[0, 10], [10, 20], [20, 30], [30, 30]], np.float32)
    heat = np.array(evidence_heat(np.array([0.01, 0.4, 0.2, 9.0]), times, 40.0))
    tenth = HEAT_PARTS // 4
    assert heat.shape == (HEAT_PARTS,) and heat.max() == 1.0
    assert not heat[:tenth].any() and not heat[3 * tenth :].any()  # background; a slot of the padding
    assert (heat[tenth : 2 * tenth] == 1.0).all() and np.allclose(heat[2 * tenth : 3 * tenth], 0.5)
    assert evidence_heat(np.zeros(3), times[:3], 40.0) == () == evidence_heat(np.zeros(0), times[:0], 0.0)


def test_evidence_joins_neighbours_and_puts_the_strongest_first() -> None:
    times = 0.08 * np.stack([np.arange(0, 400, 8), np.arange(8, 408, 8)], axis=1)
    weights = np.full(50, 0.001)
    weights[[10, 11, 12]] = [0.1, 0.2, 0.1]  # one stretch
    weights[[30, 40]] = [0.3, 0.05]  # 0.3 alone is weaker than the stretch's 0.4
    found = find_evidence(weights, times)
    assert [(e.start, e.end) for e in found] == [(6.4, 8.32), (19.2, 19.84), (25.6, 26.24)]
    assert sum(e.weight for e in found) <= 1
    assert find_evidence(np.zeros(0), np.zeros((0, 2))) == []
    heard_less = find_evidence(weights, np.minimum(times, 19.0))  # slots of padding are no evidence
    assert [(e.start, e.end) for e in heard_less] == [(6.4, 8.32)]


def test_a_weight_that_is_no_number_is_no_evidence() -> None:
    times = np.stack([np.arange(4), np.arange(1, 5)], axis=1)
    weights = np.array([np.nan, 0.5, np.inf, np.nan], np.float32)  # of a memory whose numbers go beyond float32
    assert [(e.start, e.end) for e in find_evidence(weights, times)] == [(1, 2)]
    assert max(evidence_heat(weights, times, 4.0)) == 1
    nothing = np.full(4, np.nan, np.float32)
    assert find_evidence(nothing, times) == [] and evidence_heat(nothing, times, 4.0) == ()


def test_levels_cover_every_sample() -> None:
    levels = Levels(10)
    for n in (3, 12, 9, 11):
        levels.push(np.full(n, 2.0, np.float32))
    levels.finish()
    assert levels.take(25, False).tolist() == [4, 4] and levels.take(35, True).tolist() == [4, 4]


def test_a_recording_that_vanishes_while_it_is_heard_still_becomes_a_memory(
    tiny_speech_model: SpeechModel, tmp_path: Path
) -> None:
    path = write_sound(tmp_path / "gone.wav", 60)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    listening = Listening(tiny_speech_model, path)
    for number, _ in enumerate(listening):
        if number == 0:
            path.unlink()
    assert listening.memory.recording.sha256 == digest and listening.memory.seconds == 60


@pytest.mark.parametrize("broken_off", [True, False])
def test_a_recording_is_heard_once_or_not_at_all(
    tiny_speech_model: SpeechModel, recording: Path, broken_off: bool
) -> None:
    listening = Listening(tiny_speech_model, recording)
    events = iter(listening)
    next(events)
    events.close() if broken_off else list(events)
    with pytest.raises(RuntimeError, match="once"):
        next(iter(listening))
    if broken_off:
        with pytest.raises(RuntimeError, match="end"):
            _ = listening.memory


def test_a_reader_may_be_closed_from_any_thread_at_any_time(tiny_speech_model: SpeechModel, recording: Path) -> None:
    for _ in range(20):
        reader = WindowReader(recording, tiny_speech_model.config)
        failures = []

        def close(reader: WindowReader = reader, failures: list = failures) -> None:
            try:
                reader.close()
            except ValueError as error:  # "generator already executing"
                failures.append(error)

        closer = threading.Thread(target=close)
        closer.start()
        list(reader)
        closer.join()
        assert not failures
    assert not reader_threads()


def test_a_closed_reader_reads_nothing(tiny_speech_model: SpeechModel, recording: Path) -> None:
    reader = WindowReader(recording, tiny_speech_model.config)
    reader.close()
    assert list(reader) == [] and not reader_threads()
