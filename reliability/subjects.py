"""The commands that campaigns disturb, with inputs of their own and what must come of each.

Each writes into one folder, and the same command writes the same bytes there whenever it is undisturbed; what says when
or how fast something was done does not count. How a command is disturbed is others' subject.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from speech_xl import cli
from tests.tiny import save_checkpoint, tiny_config, tiny_recognizer_config, write_sound
from tests.tiny_training import SST, STAGE, TALKS, write_lines

Files = dict[str, str]  # name below a folder -> digest of what counts in it
SHARD_BYTES = 12_000  # of a tiny conversion: several files, as large models have
QUESTIONS = "what is order 4?\nand order 5?\n"


@dataclass(frozen=True)
class Subject:
    """One command. `words` are its arguments for an output folder."""

    name: str
    words: Callable[[Path], list[str]]
    counts: Callable[[str, bytes], bytes | None] = lambda name, data: data  # of a file; None: nothing does
    growing: tuple[str, ...] = ()  # patterns of files that grow by lines: what is left may lack some, and half of one
    start: Callable[[Path], object] = lambda folder: None  # puts into the folder what is there before
    prepare: Callable[[], None] = lambda: None  # before it runs, in its process
    call: Callable[[list[str]], int] = cli.main  # the whole program, as the console script calls it

    def main(self, folder: Path) -> int:
        """Do the work in that folder -> the command's exit code."""
        self.prepare()
        return self.call(self.words(folder))

    def files(self, folder: Path) -> Files:
        """What of a folder's files counts."""
        found = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            data = path.read_bytes()
            counted = self.counts(name, in_order(data) if name.endswith(".sxl") else data)
            if counted is not None:
                found[name] = hashlib.sha256(counted).hexdigest()
        return found

    def half_written(self, folder: Path, whole: Path, before: Files) -> list[str]:
        """Names of an undisturbed run's files, in `whole`, that a disturbed one left as something else.

        `before`: what was there at first and may be there still, all of it.
        """
        reference, found = self.files(whole), self.files(folder)
        growing = {name for name in found for pattern in self.growing if fnmatch(name, pattern)} & reference.keys()
        wrong = [n for n in found if n in reference and n not in growing and found[n] != reference[n]]
        if before and all(found[n] == before.get(n) for n in found if n in reference):
            wrong = []
        return wrong + [name for name in sorted(growing) if not self._is_start(name, folder, whole)]

    def _is_start(self, name: str, folder: Path, whole: Path) -> bool:
        """Whether a file that grows has none but an undisturbed one's lines, the last of which may be cut short."""
        known = (whole / name).read_bytes().splitlines(keepends=True)
        lines = (folder / name).read_bytes().splitlines(keepends=True)
        cut = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        kept, allowed = (self.counts(name, b"".join(of)) or b"" for of in (lines, known))
        is_known = set(kept.splitlines()) <= set(allowed.splitlines())
        return is_known and (any(line.startswith(cut) for line in known) or not self.counts(name, cut))


def in_order(data: bytes) -> bytes:
    """A .sxl file with what its header says in one order: safetensors writes it in any."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        return json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True).encode() + data[8 + length :]
    except (struct.error, ValueError):  # not a whole file
        return data


def listen(inputs: Path) -> Subject:
    """`listen -o` of ten seconds."""
    talk, model = write_sound(inputs / "talk.wav", 10.0), save_checkpoint(inputs / "tiny", tiny_config())
    words = ["listen", str(talk), "--model", str(model), "--backend", "torch", "-o"]
    return Subject("listen", lambda folder: [*words, str(folder / "talk.sxl")])


def transcribe(inputs: Path) -> Subject:
    """Subtitles of a recording, into a file."""
    talk, model = write_sound(inputs / "talk.wav", 3.0), save_checkpoint(inputs / "tiny", tiny_recognizer_config())
    words = ["transcribe", str(talk), "--model", str(model), "--backend", "torch", "-o"]
    return Subject("transcribe", lambda folder: [*words, str(folder / "talk.srt")])


def convert(inputs: Path) -> Subject:
    """A tiny checkpoint into MLX's layout, in several shards."""
    return _convert("convert", inputs, lambda folder: None)


def convert_over(inputs: Path) -> Subject:
    """The same in place of an older one."""
    older = save_checkpoint(inputs / "older", tiny_config(), seed=1)
    return _convert("convert-over", inputs, lambda folder: shutil.copytree(older, folder / "model"), "--overwrite")


def _convert(name: str, inputs: Path, start: Callable[[Path], object], *more: str) -> Subject:
    source = save_checkpoint(inputs / "source", tiny_config())
    words = ["convert", "--hf-path", str(source), "--to", "mlx", *more, "--mlx-path"]

    def prepare() -> None:
        from converters import stream

        stream.SHARD = SHARD_BYTES

    return Subject(name, lambda folder: [*words, str(folder / "model")], start=start, prepare=prepare)


def train(inputs: Path) -> Subject:
    """Two stages of a tiny recogniser's SSTs, with a state saved at every step."""
    model = save_checkpoint(inputs / "tiny", tiny_recognizer_config())
    spoken = [write_sound(inputs / f"said{number}.wav", 2.0, seed=number).name for number in range(2)]
    lines = [*TALKS, *({"audio": name, "question": "what drink?", "answer": "d"} for name in spoken)]
    talks = write_lines(inputs / "talks.jsonl", lines)
    stages = [STAGE | {"steps": 4}, STAGE | {"name": "second", "steps": 2}]
    recipe = inputs / "recipe.json"
    recipe.write_text(json.dumps({"seed": 3, "sst": SST, "save_minutes": 1e-6, "stages": stages}))
    words = ["train", "--model", str(model), "--data", str(talks), "--validation", str(talks), "--recipe", str(recipe)]

    def counts(name: str, data: bytes) -> bytes | None:
        if "tfevents" in name:  # of one file for each time that it was started
            return None
        if name.endswith("metrics.csv"):
            return b"".join(line for line in data.splitlines(keepends=True) if b"speech_tokens_per_second" not in line)
        if name.endswith("adapter_config.json"):  # where the stage's start lies
            return re.sub(rb'"base_model_name_or_path": "[^"]*"', b"", data)
        return re.sub(rb'"seconds": \d+', b'"seconds": 0', data) if name.endswith("done.json") else data

    growing = ("run/stages/*/metrics.csv",)
    return Subject("train", lambda folder: [*words, "--output", str(folder / "run")], counts, growing)


def batch(inputs: Path) -> Subject:
    """Four recordings, one of them none, with questions, transcripts and a search, by a tiny recogniser."""
    model = save_checkpoint(inputs / "tiny", tiny_recognizer_config())
    talks = inputs / "talks"
    talks.mkdir(exist_ok=True)
    for number in range(3):
        write_sound(talks / f"{number}.wav", 2.5 + number, seed=number)
    (talks / "bad.wav").write_text("this is no sound")
    questions = inputs / "questions.txt"
    questions.write_text(QUESTIONS)
    of_corpus = inputs / "corpus.txt"
    of_corpus.write_text("which recordings mention a bridge?\n")
    words = ["batch", str(talks), "--questions", str(questions), "--corpus-questions", str(of_corpus), "--transcribe"]
    words += ["--model", str(model), "--backend", "torch", "--max-tokens", "8", "--output"]
    return Subject("batch", lambda folder: [*words, str(folder / "out")], growing=("out/results.jsonl",))


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "listen": listen,
    "convert": convert,
    "convert-over": convert_over,
    "train": train,
    "batch": batch,
    "transcribe": transcribe,
}
KILLED = ("listen", "convert", "train", "batch")  # whose kills are counted
