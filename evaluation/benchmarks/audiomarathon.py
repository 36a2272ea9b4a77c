"""AudioMarathon (arXiv 2510.07293): ten tasks over sound of one to five minutes, one folder each.

A task is found by its file of entries, wherever in the folder it stands. Scores are F1 over the labels that answers
name, as in the public scripts for Qwen2.5-Omni; the average of the ten counts ASR as 100 - WER.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
from sklearn.metrics import f1_score

from evaluation.benchmarks.benchmark import Answered, Benchmark, BenchmarkError, Scores
from evaluation.benchmarks.folder import OTHER, checked, find, read_json, read_text, text
from evaluation.data import Line

ASR, DETECTION = "ASR", "SD"


@dataclass(frozen=True)
class Task:
    """A task of choices. `places`: where recordings are, from the folder of `file`; the first one that has it.

    `by_text`: classes are the choices' texts, not their letters. `classes`: those that F1 is averaged over; "": those
    that occur in answers or right answers.
    """

    file: str
    places: tuple[str, ...] = ("", "wav")
    by_text: bool = False
    classes: str = ""
    average: str = "macro"


TASKS = {  # in the order of the public table, where ASR is the third and SD the seventh
    "SER": Task("merged_audio_data.json"),
    "SCR": Task("race_benchmark.json", classes="ABCD"),
    "SED": Task("desed_sound_event_detection_task.json"),
    "MC": Task("music_genre_classification_meta.json", classes="ABCD"),
    "ASC": Task("acoustic_scene_task_meta.json", ("", "concatenated_resampled", "concatenated_audio")),
    "ER": Task("audio_emotion_dataset.json"),
    "SAR": Task("age_classification_task_meta.json", by_text=True),
    "SGR": Task("gender_id_task_meta.json", by_text=True, average="weighted"),
}
HALF_TRUTH = Task("")  # its entries are the files themselves
HALF_TRUTH_QUESTION = "Is this recording completely authentic, or does it contain artificially synthesized parts?"
COLUMNS = ("SER", "SCR", ASR, "SED", "MC", "ASC", DETECTION, "ER", "SAR", "SGR")
SIZES = dict(zip(COLUMNS, (490, 820, 204, 254, 120, 1145, 776, 185, 959, 1614), strict=True))


def read(folder: Path) -> list[Line]:
    """The lines of all tasks that are in the folder; BenchmarkError where there is none, or a file is not as published."""
    lines = _read_speech(folder) + _read_half_truth(folder)
    for kind, task in TASKS.items():
        path = find(folder, task.file)
        if path is not None:
            entries = read_json(path)
            if isinstance(entries, dict):  # sound event detection wraps its entries
                entries = entries.get("tasks")
            checked(entries, list, str(path), "list of entries")
            lines += [
                _line(entry, kind, task, path, f"{path}, entry {number}", folder)
                for number, entry in enumerate(entries, 1)
                if not (kind == "ER" and _is_left_out(entry))
            ]
    if not lines:
        raise BenchmarkError(
            f"{folder} holds no task of AudioMarathon, such as {TASKS['SCR'].file}; name the folder of its downloads, of "
            "the layout that docs/benchmarks_public.md describes."
        )
    return sorted(lines, key=lambda line: COLUMNS.index(line.fields["kind"]))


def _line(entry: Any, kind: str, task: Task, path: Path, where: str, folder: Path) -> Line:
    checked(entry, dict, where, "object")
    name = text(entry, "audio_path" if "audio_path" in entry else "path", where)
    there = (place for place in task.places if (path.parent / place / name).is_file())
    audio = path.parent / next(there, task.places[0]) / name
    answer = text(entry, "answer" if "options" in entry else "answer_gt", where)
    return Line(
        where,
        {
            "id": f"{kind} {where.rpartition(' ')[2]}",
            "audio": str(audio.relative_to(folder)),
            "kind": kind,
            "question": text(entry, "question", where),
            "answer": answer,
            "choices": _choices(entry, where),
        },
    )


def _choices(entry: dict[str, Any], where: str) -> dict[str, str]:
    """Letter -> choice: of a list, of an object, or of choice_a, choice_b and so on, whichever the entry has."""
    if isinstance(entry.get("options"), list):
        choices = dict(zip("ABCDEFGH", entry["options"], strict=False))
    elif isinstance(entry.get("choices"), dict):
        choices = entry["choices"]
    else:
        choices = {
            letter: entry[f"choice_{letter.lower()}"] for letter in "ABCDE" if f"choice_{letter.lower()}" in entry
        }
    if len(choices) < 2:
        raise BenchmarkError(f"{where}: there are no choices; {OTHER}.")
    return choices


def _is_left_out(entry: Any) -> bool:
    """Recordings that the public script for emotions leaves out: the happy ones of two speakers."""
    fields = entry if isinstance(entry, dict) else {}
    speaker, emotion = (str(fields.get(name, "")).strip().lower() for name in ("person_id", "emotion_label"))
    return speaker in ("2", "10") and emotion == "happy"


def _read_speech(folder: Path) -> list[Line]:
    """LibriSpeech-long: test-clean/SPEAKER/CHAPTER/NAME.flac, its words in NAME.txt or the chapter's .trans.txt."""
    split = find(folder, "test-clean")
    lines = []
    for audio in sorted(split.glob("*/*/*.flac")) if split is not None else []:
        alone, chapter = audio.with_suffix(".txt"), audio.parent
        shared = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
        words = None
        if alone.is_file():
            words = read_text(alone)
        elif shared.is_file():
            rows = (row.partition(" ") for row in read_text(shared).splitlines())
            words = next((row[2] for row in rows if row[0] == audio.stem), None)
        said = checked(words, str, str(audio), "transcript beside it").strip()
        fields = {"id": f"{ASR} {audio.stem}", "audio": str(audio.relative_to(folder)), "kind": ASR, "text": said}
        lines.append(Line(str(audio), fields))
    return lines


def _read_half_truth(folder: Path) -> list[Line]:
    """HAD: recordings in the folders real and fake, side by side."""
    places = [place.parent for place in sorted(folder.rglob("real")) if (place.parent / "fake").is_dir()]
    if len(places) > 1:
        raise BenchmarkError(f"{folder} holds {len(places)} pairs of folders real and fake; keep only one of them.")
    return [
        Line(
            str(audio),
            {
                "id": f"{DETECTION} {label} {audio.stem}",
                "audio": str(audio.relative_to(folder)),
                "kind": DETECTION,
                "question": HALF_TRUTH_QUESTION,
                "answer": label,
                "choices": {"A": "real", "B": "fake"},
            },
        )
        for place in places
        for label in ("real", "fake")
        for audio in sorted((place / label).glob("*.wav"))
    ]


def read_letter(said: str, choices: dict[str, str]) -> str | None:
    """The letter that an answer starts with or announces, else that of the one choice whose text it holds, else the
    first letter that stands alone; None: nothing of this.
    """
    upper, letters = said.strip().upper(), "".join(choices)
    if found := re.match(
        rf"[(\[]?([{letters}])(?:$|[.):\]])|.*?\b(?:OPTION|CHOICE)\s+([{letters}])\b", upper, re.DOTALL
    ):
        return found[1] or found[2]
    held = [
        letter for letter, choice in choices.items() if re.search(rf"(?<!\w){re.escape(choice.upper())}(?!\w)", upper)
    ]
    if len(held) == 1:
        return held[0]
    standing = re.search(rf"\b([{letters}])\b", upper)
    return standing and standing[1]


def error_text(words: str) -> str:
    """Words as the public script compares them: lower case, marks dropped, hyphens and apostrophes closed up."""
    spaced = re.sub(r'[.!?,;:"()\[\]{}]', " ", words.lower())
    return " ".join(re.sub(r"[-']", "", spaced).split())


def word_error_rate(said: str, words: str) -> float:
    """In percent, of one recording; 100 where nothing was said."""
    return 100 * jiwer.wer(error_text(words), error_text(said)) if error_text(said) else 100.0


def score(answered: Sequence[Answered]) -> Scores:
    """In percent, a figure a task as the benchmark's own scripts compute it; None where a task was not asked."""
    by_kind: dict[str, list[Answered]] = {kind: [] for kind in COLUMNS}
    for each in answered:
        by_kind[each.item.kind].append(each)
    figures: dict[str, float | None] = dict.fromkeys(COLUMNS)
    notes = []
    for kind, group in by_kind.items():
        if not group:
            continue
        if kind == ASR:
            rates = [word_error_rate(each.said, each.right) for each in group]
            figures[kind] = 100 - sum(rates) / len(rates)
            continue
        figures[kind], silent = _f1(group, TASKS.get(kind, HALF_TRUTH))
        if silent:
            notes.append(
                f"{kind}: {silent} of {len(group)} answers name no choice; as in the public scripts, F1 omits them."
            )
    known = [value for value in figures.values() if value is not None]
    average = sum(known) / len(known) if len(known) == len(figures) else None
    return Scores({"average": average, **figures}, notes)


def _f1(group: Sequence[Answered], task: Task) -> tuple[float, int]:
    """-> (F1 in percent, answers that name no choice)."""
    pairs = []
    for each in group:
        choices = dict(zip(each.item.letters, each.item.choices, strict=True))
        letter = read_letter(each.said, choices)
        if letter is not None:
            pair = (each.right, letter)
            pairs.append(tuple(choices[x].strip().lower() for x in pair) if task.by_text else pair)
    silent = len(group) - len(pairs)
    if not pairs:
        return 0.0, silent
    right, taken = zip(*pairs, strict=True)
    classes = list(task.classes) or sorted({*right, *taken})
    return 100 * f1_score(right, taken, labels=classes, average=task.average, zero_division=0), silent


AUDIOMARATHON = Benchmark("AudioMarathon", "arXiv 2510.07293", SIZES, read, score)
