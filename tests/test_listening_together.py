"""Several recordings heard as one batch: what each gets is what it would get alone, in fewer and larger calls."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_xl.backend import load_backend
from speech_xl.config import ModelConfig
from speech_xl.errors import RecordingError
from speech_xl.heard import Heard
from speech_xl.interval_batches import joint_batches
from speech_xl.listening import Listening
from speech_xl.listening_together import listen_together
from speech_xl.model import SpeechModel
from speech_xl.schedule import FixedRatio, IntervalPlan, ListedRatios, Scheduler
from speech_xl.summarizers import SUMMARIZERS
from tests.test_conversation import reader_threads
from tests.test_pages import PREFIX, TWINS, few
from tests.tiny import configs, save_checkpoint, tiny_config, tiny_recognizer_config, write_sound


@pytest.mark.parametrize("name", TWINS)
@few
@given(
    config=configs(),
    tokens=st.lists(st.integers(1, 70), min_size=2, max_size=4),
    rule=st.sampled_from(list(SUMMARIZERS)),
    horizon=st.sampled_from([None, 0, 5]),
    bits=st.sampled_from([16, 8]),
)
def test_intervals_of_several_recordings_equal_each_alone(
    name: str, config: ModelConfig, tokens: list[int], rule: str, horizon: int | None, bits: int
) -> None:
    """To 1e-5; packed rows may fall to a neighbouring code where numbers differ in the last digit."""
    drawn = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        backend = load_backend(name, save_checkpoint(Path(folder) / "model", config), config, bits)
        policy, plans, words = FixedRatio(config.sst.ratios[0]), [], []
        for count in tokens:
            own = Scheduler(config.sst.interval, policy, len(PREFIX), SUMMARIZERS[rule].plan, horizon)
            plans.append(list(own.plan_all(count)))
            words.append(drawn.integers(0, config.decoder.vocab_size, count).tolist())

        def started() -> list[object]:
            states = [backend.start(PREFIX) for _ in tokens]
            for state, ids in zip(states, words, strict=True):
                backend.hear_words(state, ids)
            return states

        alone, joint = started(), started()
        for state, own in zip(alone, plans, strict=True):
            for plan in own:
                backend.close_intervals([(state, [plan])])
        for batch in joint_batches(plans, 6):
            backend.close_intervals([(joint[number], own) for number, own in batch.items()])
        for one, other in zip(joint, alone, strict=True):
            ours, theirs = backend.export_memory(one), backend.export_memory(other)
            for part in ours:
                apart = np.abs(ours[part] - theirs[part])
                assert apart.shape == theirs[part].shape
                assert apart.max() <= 1e-5 * max(1, np.abs(theirs[part]).max()) or (
                    bits < 16 and (apart > 1e-5).mean() < 0.01
                )


def sizes(batches: Iterator[dict[int, list[IntervalPlan]]]) -> list[dict[int, int]]:
    return [{number: len(plans) for number, plans in batch.items()} for batch in batches]


def test_batches_hold_intervals_of_one_shape_side_by_side() -> None:
    def plans(tokens: int, horizon: int | None, *ratios: int | None) -> list[IntervalPlan]:
        return list(Scheduler(8, ListedRatios(ratios), 2, horizon=horizon).plan_all(tokens))

    assert sizes(joint_batches([plans(20, None, 4), plans(16, None, 4)], 8)) == [{0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1}]
    assert sizes(joint_batches([plans(20, 0, 4), plans(16, 0, 4)], 8)) == [{0: 2, 1: 2}, {0: 1}]
    assert sizes(joint_batches([plans(24, 0, 4), plans(24, 0, 4)], 4)) == [{0: 3, 1: 1}, {1: 2}]
    assert sizes(joint_batches([plans(16, None, 4), plans(16, None, None, 4)], 8)) == [{0: 1}, {1: 1}, {0: 1, 1: 1}]
    assert sizes(joint_batches([[], plans(8, None, 4)], 8)) == [{1: 1}]


@pytest.fixture(params=["frames", "words"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    config = tiny_config() if request.param == "frames" else tiny_recognizer_config()
    folder = save_checkpoint(tmp_path_factory.mktemp("together") / "tiny", config, seed=1)
    return SpeechModel.load(str(folder), "torch")


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    lengths = (9.0, 2.5, 14.0, 0.7, 30.0)
    return [write_sound(tmp_path / f"{n}.wav", seconds, seed=n) for n, seconds in enumerate(lengths)]


def alone(model: SpeechModel, paths: Sequence[Path]) -> list[tuple[Listening, list[Heard]]]:
    found = []
    for path in paths:
        listening = Listening(model, path, 4)
        found.append((listening, list(listening)))
    return found


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_each_recording_is_heard_as_if_alone(model: SpeechModel, recordings: list[Path], at_once: int) -> None:
    listenings = [Listening(model, path, 4) for path in recordings]
    events: dict[Listening, list[Heard]] = {listening: [] for listening in listenings}
    ended: list[Listening] = []
    for listening, event in listen_together(listenings, at_once):
        assert listening not in ended
        if event is None:
            ended.append(listening)
            assert listening.memory.slots
        else:
            events[listening].append(event)
    assert set(ended) == set(listenings) and not reader_threads()
    for (other, told), listening in zip(alone(model, recordings), listenings, strict=True):
        ours, theirs = (model.backend.export_memory(x.memory.state) for x in (listening, other))
        for part in ours:
            np.testing.assert_allclose(ours[part], theirs[part], atol=1e-5)
        assert np.array_equal(listening.memory.times, other.memory.times)
        assert np.array_equal(listening.memory.spans, other.memory.spans)
        assert listening.memory.recording == other.memory.recording
        assert [vars(e) | {"speed": 0} for e in events[listening]] == [vars(e) | {"speed": 0} for e in told]


def test_a_batch_is_one_call(model: SpeechModel, recordings: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same recording side by side costs as many calls of the encoder and of the decoder as once."""

    def calls(at_once: int, count: int) -> Counter[str]:
        counted: Counter[str] = Counter()

        def count_calls(owner: object, name: str) -> None:
            function = getattr(owner, name)

            def counting(*arguments: object) -> object:
                counted[name] += 1
                return function(*arguments)

            monkeypatch.setattr(owner, name, counting)

        count_calls(model.backend.model.speech.encoder, "forward")
        count_calls(model.backend.model.decoder, "intervals")
        for _ in listen_together((Listening(model, recordings[0], 4) for _ in range(count)), at_once):
            pass
        monkeypatch.undo()
        return counted

    once = calls(1, 1)
    assert calls(2, 2) == once and once["forward"] and once["intervals"] > 1
    assert calls(1, 2) == {name: 2 * number for name, number in once.items()}


def test_the_next_recording_is_taken_when_one_ends(model: SpeechModel, recordings: list[Path]) -> None:
    opened: list[Path] = []

    def listenings() -> Iterator[Listening]:
        for path in recordings:
            opened.append(path)
            yield Listening(model, path, 4)

    for _, event in listen_together(listenings(), 2):
        if event is None:
            assert len(opened) < len(recordings) or recordings[-1] in opened
            assert not reader_threads() or len(reader_threads()) <= 2
    assert opened == recordings


def test_what_cannot_be_read_on_ends_alone(
    model: SpeechModel, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    listenings = [Listening(model, path, 4) for path in recordings[:3]]
    broken = listenings[1]
    original = broken.next_part

    def next_part() -> object:
        if broken.intervals:
            raise RecordingError("the rest is gone")
        return original()

    monkeypatch.setattr(broken, "next_part", next_part)
    ends = {listening: event for listening, event in listen_together(listenings, 3) if not isinstance(event, Heard)}
    assert str(ends.pop(broken)) == "the rest is gone" and set(ends.values()) == {None} and len(ends) == 2
    with pytest.raises(RuntimeError):
        _ = broken.memory
    for listening in ends:
        assert listening.memory.slots
    assert not reader_threads()


def test_one_is_cancelled_and_the_others_go_on(model: SpeechModel, recordings: list[Path]) -> None:
    first, second = Listening(model, recordings[4], 4), Listening(model, recordings[2], 4)
    ended = []
    for listening, event in listen_together([first, second], 2):
        if event is None:
            ended.append(listening)
        elif not first.cancelled:
            first.cancel()
    assert ended == [first, second] and second.memory.seconds == pytest.approx(14, abs=0.1)
    with pytest.raises(RuntimeError):
        _ = first.memory


def test_leaving_the_loop_ends_all_readers(model: SpeechModel, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "long.wav", 150.0)
    told = listen_together([Listening(model, path, 4) for _ in range(3)], 3)
    next(told)
    assert reader_threads()
    told.close()
    assert not reader_threads()
