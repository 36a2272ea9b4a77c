"""Chapters: every segment is in one, borders lie where the subject changes, and titles are the chapter's own words."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl.chapters import MOST_CHAPTERS, SHORTEST, find_chapters
from speech_xl.example import EXAMPLE
from speech_xl.transcript import Segment

SUBJECTS = {
    "garden": ["roses", "tulips", "soil", "seeds", "compost", "hedge", "lawn", "greenhouse", "petals"],
    "sailing": ["harbor", "anchor", "mast", "rudder", "sails", "tide", "compass", "lighthouse", "rope"],
    "baking": ["flour", "yeast", "oven", "dough", "crust", "kneading", "sourdough", "butter", "pastry"],
}


def talk(subjects: list[str], sentences: int = 12, seconds: float = 4.0, seed: int = 0) -> list[Segment]:
    """Sentences about each subject in turn, of its own words and of words that every subject uses."""
    rng, said = np.random.default_rng(seed), []
    for number in range(len(subjects) * sentences):
        words = [
            *rng.choice(SUBJECTS[subjects[number // sentences]], 4),
            *rng.choice(["people", "morning", "simple"], 3),
        ]
        said.append(Segment(number * seconds, (number + 1) * seconds - 0.5, " ".join(words) + "."))
    return said


def test_borders_lie_where_the_subject_changes() -> None:
    chapters = find_chapters(talk(["garden", "sailing", "baking", "garden"]))
    assert [c.first for c in chapters] == [0, 12, 24, 36]
    assert [(c.start, c.end) for c in chapters[:2]] == [(0.0, 47.5), (48.0, 95.5)]


def test_titles_are_words_of_the_chapter_alone() -> None:
    for chapter, subject in zip(find_chapters(talk(["garden", "sailing"])), ["garden", "sailing"], strict=True):
        assert {word.lower() for word in chapter.title.split(", ")} <= set(SUBJECTS[subject])


def test_talk_of_one_subject_is_one_chapter() -> None:
    assert len(find_chapters(talk(["baking"], sentences=40))) == 1


def test_the_town_meeting_is_divided_between_its_speakers_subjects() -> None:
    passages = json.loads(EXAMPLE.with_suffix(".json").read_text(encoding="utf-8"))["passages"]
    segments = []
    for p in passages:
        sentences = p["text"].replace("? ", "?|").replace(". ", ".|").split("|")
        step = (p["end"] - p["start"]) / len(sentences)
        segments += [Segment(p["start"] + i * step, p["start"] + (i + 1) * step, s) for i, s in enumerate(sentences)]
    chapters = find_chapters(segments)
    titles = " ".join(c.title.lower() for c in chapters)
    assert 4 <= len(chapters) <= 9 and all(word in titles for word in ("library", "bridge", "hive", "market"))
    starts = [c.start for c in chapters]
    for subject in ("Now to the bridge", "Robert Lang"):  # each within ten seconds of the change
        said = next(s.start for s in segments if subject in s.text)
        assert min(abs(said - start) for start in starts) < 10


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["", "yes", "ice and fire", "the bridge", "Zürich 42", "…"]), max_size=60),
    st.floats(0.1, 60),
)
def test_every_segment_is_in_one_chapter(texts: list[str], seconds: float) -> None:
    segments = [Segment(i * seconds, (i + 1) * seconds, text) for i, text in enumerate(texts)]
    chapters = find_chapters(segments)
    assert [i for c in chapters for i in range(c.first, c.stop)] == list(range(len(segments)))
    assert len(chapters) <= MOST_CHAPTERS
    assert all(segments[c.stop - 1].end - c.start > SHORTEST - 2 * seconds for c in chapters if len(chapters) > 1)


def test_ten_hours_are_divided_into_chapters_that_a_person_overlooks() -> None:
    subjects = [name for name in SUBJECTS for _ in range(4)]
    chapters = find_chapters(talk(subjects, sentences=750))
    assert 3 <= len(chapters) <= MOST_CHAPTERS
    starts = [c.start for c in chapters]
    for change in (4 * 750 * 4.0, 8 * 750 * 4.0):
        assert min(abs(change - start) for start in starts) < 300
