"""Windows read with the words before them as a prompt: what stands in it, and when it is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from speech_xl.backend import Recognition
from speech_xl.config import SAMPLING_RATE
from speech_xl.features import Window
from speech_xl.word_reader import LARGEST_GROUP, MOST_WINDOWS, PROMPT_SHARE, Earlier, WordReader, group_size
from tests.tiny import RECOGNIZER_TOKENIZER, tiny_recognizer_config

CONFIG = replace(tiny_recognizer_config().recognizer, previous_id=7)


def window(number: int, is_silent: bool = False) -> Window:
    """Its mel says which reading it gets."""
    return Window(number, None if is_silent else np.full((1, 1), number, np.float32), 2 * SAMPLING_RATE)


class Recogniser:
    """Reads the texts that it is given, one a window; `lost` are texts that it falls into behind a prompt."""

    def __init__(self, texts: Sequence[str], lost: dict[int, str] | None = None, sure: float = -0.2) -> None:
        self.texts, self.lost, self.sure = texts, lost or {}, sure
        self.calls: list[tuple[list[int], str | list[str]]] = []  # windows, and their prompt or prompts as text
        self.longest = 0  # prompt, in tokens

    def recognize(self, mel: np.ndarray, before: Sequence[Sequence[int]]) -> list[Recognition]:
        numbers = mel[:, 0, 0].astype(int).tolist()
        prompts = [RECOGNIZER_TOKENIZER.decode(list(ids[1:])) for ids in before]
        self.calls.append((numbers, prompts[0] if len(set(prompts)) == 1 else prompts))
        (length,) = set(map(len, before))
        assert len(before) == len(mel) and all(ids[0] == CONFIG.previous_id for ids in before if ids)
        self.longest = max(self.longest, length - 1)
        readings = []
        for number in numbers:
            text = self.lost.get(number) if length else None
            ids = RECOGNIZER_TOKENIZER.encode(" " + (text or self.texts[number]), add_special_tokens=False).ids
            readings.append(Recognition(ids, np.full((len(ids) + 1, 100), 0.01, np.float32), 0.0, self.sure))
        return readings


def read(recogniser: Recogniser, *groups: Sequence[Window], **changes: object) -> list[list[str]]:
    reader = WordReader(recogniser, RECOGNIZER_TOKENIZER, replace(CONFIG, **changes))
    earlier = Earlier()
    return [[word.text for word in words] for group in groups for words in reader.read([(group, earlier)])[0]]


def test_a_group_is_read_behind_the_words_of_the_one_before() -> None:
    recogniser = Recogniser(["one two", "three", "four five", "six"])
    words = read(recogniser, [window(0)], [window(1), window(2)], [window(3)], max_target_positions=400)
    assert words == [["one", "two"], ["three"], ["four", "five"], ["six"]]
    assert recogniser.calls[0] == ([0], "")
    assert [(n, text.split()) for n, text in recogniser.calls[1:]] == [
        ([1, 2], ["one", "two"]),
        ([3], ["one", "two", "three", "four", "five"]),
    ]


def test_recordings_are_read_together_where_their_prompts_are_equally_long() -> None:
    recogniser = Recogniser(["one two", "three", "four five", "six", "seven", "eight nine"])
    reader = WordReader(recogniser, RECOGNIZER_TOKENIZER, replace(CONFIG, max_target_positions=400))
    first, second, third = Earlier(), Earlier(), Earlier()
    read = reader.read([([window(0)], first), ([window(2, True)], second), ([window(3)], third)])
    assert [[[word.text for word in words] for words in group] for group in read] == [[["one", "two"]], [[]], [["six"]]]
    assert recogniser.calls == [([0, 3], "")]
    assert list(first.words) == ["one", "two"] and not second.words and list(third.words) == ["six"]
    reader.read([([window(1)], first), ([window(2)], second), ([window(4), window(5)], third)])
    alone = [numbers for numbers, _ in recogniser.calls[1:]]
    assert sorted(alone) == [[1], [2], [4, 5]] and list(third.words) == ["six", "seven", "eight", "nine"]


def test_a_recogniser_gets_a_bounded_number_of_windows() -> None:
    recogniser = Recogniser(["one"] * 3 * MOST_WINDOWS)
    reader = WordReader(recogniser, RECOGNIZER_TOKENIZER, CONFIG)
    read = reader.read([([window(n)], Earlier()) for n in range(2 * MOST_WINDOWS + 3)])
    assert [len(numbers) for numbers, _ in recogniser.calls] == [MOST_WINDOWS, MOST_WINDOWS, 3]
    assert all(words[0].text == "one" for ((words),) in read)


def test_silent_windows_are_not_read() -> None:
    recogniser = Recogniser(["one", "two", "three"])
    assert read(recogniser, [window(0, True)], [window(1), window(2, True)]) == [[], ["two"], []]
    assert recogniser.calls == [([1], "")]


def test_a_reading_that_its_prompt_carried_away_is_made_again_without() -> None:
    recogniser = Recogniser(["one", "two", "three"], lost={2: "la " * 60})
    assert read(recogniser, [window(0)], [window(1), window(2)], max_target_positions=400) == [
        ["one"],
        ["two"],
        ["three"],
    ]
    assert [(n, text.strip()) for n, text in recogniser.calls] == [([0], ""), ([1, 2], "one"), ([2], "")]


def test_unsure_words_prompt_nobody() -> None:
    recogniser = Recogniser(["one", "two"], sure=-1.5)
    assert read(recogniser, [window(0)], [window(1)]) == [["one"], ["two"]]
    assert [text for _, text in recogniser.calls] == ["", ""]


def test_the_prompt_leaves_the_text_its_room() -> None:
    recogniser = Recogniser(["every word that was said before the last", "two"])
    read(recogniser, [window(0)], [window(1)], max_target_positions=80)
    assert recogniser.longest == 80 // PROMPT_SHARE
    assert recogniser.calls[1][1].endswith("last")


def test_a_recogniser_that_knows_no_earlier_text_gets_none() -> None:
    recogniser = Recogniser(["one", "two"])
    read(recogniser, [window(0)], [window(1)], previous_id=None)
    assert [text for _, text in recogniser.calls] == ["", ""]


def test_the_first_group_is_one_window() -> None:
    assert [group_size(n) for n in range(6)] == [1, 2, 3, LARGEST_GROUP, LARGEST_GROUP, LARGEST_GROUP]
