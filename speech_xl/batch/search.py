"""Questions about the whole corpus: which recordings say something, and where.

A question is searched by its words: those that carry its sense, each in any of its English forms, and "quoted words"
as they stand. A recording is found where one sentence of its transcript has all of them. SQLite does the searching
(FTS5, Porter's stemmer, ranks by bm25); this file knows words and spans, no sound and no model.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

from speech_xl.batch.results import Line
from speech_xl.errors import QuestionError

_EMPTY_WORDS = """
    a about all am an and any anybody anyone anything are as at be been being by can could did do does each every file
    files for from had has have he her his how i in into is it its many may me mention mentioned mentioning mentions might
    much must my no not of off on or our over recording recordings said say saying says shall she should so some somebody
    someone something somewhere speak speaks spoke spoken talk talked talking talks tell tells than that the their them then
    there these they this those to told under up us was we were what when where which who whom whose why will with word
    words would you your
"""
EMPTY_WORDS = frozenset(_EMPTY_WORDS.split())  # what a question is made of, as against what it is about
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_QUOTED = re.compile(r"[\"“]([^\"“”]*)[\"”]")


def terms_of(question: str) -> list[str]:
    """The words and quoted phrases to search for; QuestionError if there are none."""
    quoted = [" ".join(_WORD.findall(phrase)) for phrase in _QUOTED.findall(question)]
    words = [word for word in _WORD.findall(_QUOTED.sub(" ", question)) if word.lower() not in EMPTY_WORDS]
    terms = list(dict.fromkeys([*filter(None, quoted), *words]))
    if not terms:
        raise QuestionError(f'{question!r} has no word to search for; name one, in "quotes" if it is a common one.')
    return terms


def search(transcripts: Iterable[Line], questions: Iterable[str]) -> Iterator[dict[str, Any]]:
    """For each question {"question", "terms", "recordings": [{"recording", "spans": [{"start", "end", "text"}]}]}.

    The recordings that say most of it come first; spans are in the order of the recording, in seconds.
    """
    names: list[str] = []
    with closing(sqlite3.connect("")) as database:  # a temporary file: a corpus need not fit the memory
        database.execute(
            "CREATE VIRTUAL TABLE segments USING "
            "fts5(text, recording UNINDEXED, first UNINDEXED, last UNINDEXED, tokenize = 'porter unicode61')"
        )
        for line in transcripts:
            rows = [(s["text"], len(names), s["start"], s["end"]) for s in line["segments"]]
            database.executemany("INSERT INTO segments VALUES (?, ?, ?, ?)", rows)
            names.append(line["recording"])  # a number stands for it: the name of a file may be no text
        for question in questions:
            terms = terms_of(question)
            found = [{"recording": names[number], "spans": spans} for number, spans in _found(database, terms)]
            yield {"question": question, "terms": terms, "recordings": found}


def _found(database: sqlite3.Connection, terms: list[str]) -> list[tuple[int, list[dict[str, Any]]]]:
    """(recording, its spans), the best recording first."""
    rows = database.execute(
        "SELECT recording, first, last, text, bm25(segments) FROM segments WHERE segments MATCH ? ORDER BY rowid",
        (" AND ".join(f'"{term}"' for term in terms),),
    )
    spans: dict[int, list[dict[str, Any]]] = {}
    ranks: dict[int, float] = {}
    for recording, first, last, text, rank in rows:
        spans.setdefault(recording, []).append({"start": first, "end": last, "text": text})
        ranks[recording] = ranks.get(recording, 0.0) + rank  # the smaller, the better
    return [(number, spans[number]) for number in sorted(spans, key=ranks.__getitem__)]
