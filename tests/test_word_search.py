"""Which texts a question is about."""

from __future__ import annotations

import numpy as np

from speech_xl.word_search import announced, holders, relevance, stems


def test_rare_words_count_more_and_neighbours_a_little() -> None:
    texts = ["The bridge is old.", "The bridge will be repaired in May.", "The bees are well.", "Good night."]
    scores = relevance("When will the bridge be repaired?", texts)
    assert np.argmax(scores) == 1 and scores[0] > scores[2] > scores[3] == 0


def test_other_forms_of_a_word_are_found() -> None:
    assert set(stems("Who repaired the printer?")) & set(stems("Printers: repairing them"))


def test_figures_said_one_by_one_are_a_number() -> None:
    assert "47" in stems("Four, seven. A latte.") and "47" in stems("4-7") and "47" in stems("order 47")
    assert (
        np.argmax(relevance("What drink is order 47?", ["3, 4. A mocha.", "I said 4, 7. A latte.", "7, 5. Tea."])) == 1
    )


def test_empty_words_find_nothing() -> None:
    assert (relevance("What is it?", ["it is what it is", "no"]) == 0).all()


def test_numbers_are_held_where_they_begin_however_they_are_said() -> None:
    texts = ["Three. Four,", "seven. A small latte.", "In 2006 we moved.", "It took forty-seven days."]
    assert holders("What is order 47?", texts) == [3]
    assert holders("What is order 47?", texts[:3]) == [0]
    assert holders("Did 34 of them move in 2006?", texts) == [0, 2]
    assert holders("What happened in 2007?", texts) == holders("What is it?", texts) == []


def test_a_number_that_is_called_out_announces_the_next_sentence() -> None:
    text = " Two seven. A large latte, please. Order four seven. Yes. Two small ones for me. It took forty-seven days. Nine."
    assert [text[slice(*place)] for place in announced("What is order 27?", text)] == [
        " Two seven. A large latte, please."
    ]
    (place,) = announced("What is order 47?", text.replace("forty-seven", "some"))
    assert text[slice(*place)] == " Order four seven. Yes. Two small ones for me."
    assert announced("What is order 47?", text) == []  # a number in a sentence announces nothing
    assert announced("What is order 9?", text) == [(text.index(" Nine."), len(text))]
    assert announced("What is order 30?", text) == announced("What is it?", text) == []
