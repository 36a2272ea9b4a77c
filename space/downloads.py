"""Files that a visitor asks for: the memory, the conversation, the transcript. None is made before it is asked for.

They lie in the session's own folder and go with it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from space.pictures import times
from space.session import Run, Session
from speech_xl.asking import Answer
from speech_xl.clock import clock
from speech_xl.errors import OutputError, RecordingError
from speech_xl.memory import save_memory
from speech_xl.model import SpeechModel
from speech_xl.transcript import text_lines
from speech_xl.whole_file import whole_file

SUBTITLES = ("srt", "vtt", "txt")


def download(kind: str, session: Session | None) -> str:
    """The path of a new file: sxl, md or json (the conversation), srt, vtt or txt.

    RecordingError if there is nothing to put in it, OutputError if it cannot be written; no half of it is left.
    """
    run, model = (session.run, session.model) if session is not None else (None, None)
    try:
        if kind == "sxl":
            return str(memory_file(run, model))
        if kind in SUBTITLES:
            return str(_transcript(kind, run))
        return str(_conversation(kind, run))
    except (OutputError, OSError):
        raise OutputError("The file cannot be written: this page's disk may be full; try again later.") from None


def memory_file(run: Run | None, model: SpeechModel | None) -> Path:
    """The .sxl file of a recording that `model` has heard, written once."""
    memory = run.memory if run is not None else None
    if run is None or memory is None or model is None:
        raise RecordingError("There is no memory yet; listen to a recording first.")
    path = run.memory_path(run.name)
    if not path.exists():
        save_memory(memory, path, model)
    return path


def _conversation(kind: str, run: Run | None) -> Path:
    """Questions and answers, with times, as Markdown or JSON."""
    if run is None or not run.answers:
        raise RecordingError("There is no conversation to export yet; ask something first.")
    if kind == "json":
        text = json.dumps({"recording": run.name, "answers": [_plain(a) for a in run.answers]}, indent=2)
    else:
        lines = [f"# {run.name}", ""]
        for a in run.answers:
            spans = ", ".join(times(e) for e in a.evidence[:3])
            partly = run.memory is None or a.heard_seconds < run.memory.seconds
            said = f"Of the first {clock(a.heard_seconds)}: {a.answer}" if partly else a.answer
            lines += [f"**{a.question}**", "", said + (f" ({spans})" if spans else ""), ""]
        text = "\n".join(lines)
    return _write(run.folder_path / f"conversation.{kind}", text)


def _plain(answer: Answer) -> dict[str, Any]:
    """An answer's fields but its heat, which evidence says in words."""
    return {name: value for name, value in asdict(answer).items() if name != "heat"}


def _transcript(kind: str, run: Run | None) -> Path:
    """What the page shows of it: the words as recognised, or as read back from the memory."""
    segments = run.segments() if run is not None else []
    if run is None or not segments:
        raise RecordingError("There is no transcript yet; listen to a recording, then press Transcribe.")
    text = "".join(f"{line}\n" for line in text_lines(segments, kind))
    return _write(run.folder_path / f"{Path(run.name).stem[:80]}.{kind}", text)


def _write(path: Path, text: str) -> Path:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
