"""Hostile names and texts on the page: what it draws of them has no markup of theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from speech_xl.chapters import Chapter
from speech_xl.conversation import Listening
from speech_xl.evidence import Evidence
from speech_xl.memory import save_memory
from speech_xl.model import SpeechModel
from speech_xl.transcript import Segment
from tests.serving import talk

MARK = "<img src=x onerror=alert(1)>"
MARKDOWN = "[a](javascript:alert(1))"
NAMES = (f"{MARK}.wav", f'">{MARK}.wav', f"'{MARK}.wav", f"{MARKDOWN}.wav")


class Tags(HTMLParser):
    """Collects what would run: elements and attributes that the page itself never writes from texts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note tags and attributes that run something."""
        if tag in ("img", "script", "iframe", "object"):
            self.found.append(tag)
        self.found += [name for name, value in attrs if name == "onerror" or (value or "").startswith("javascript:")]


def strings(value: Any) -> Iterator[str]:
    """Every text in what a handler returns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (s for part in value.values() for s in strings(part))
    elif isinstance(value, list | tuple):
        yield from (s for part in value for s in strings(part))
    elif hasattr(value, "value"):  # a component
        yield from strings(value.value)


def running(drawn: Any) -> list[str]:
    """What of all that is drawn would run."""
    found = []
    for text in strings(drawn):
        tags = Tags()
        tags.feed(text)
        found += tags.found
    return found


def page_findings(checkpoint: Path, folder: Path) -> Iterator[str]:
    """Hear recordings and memories with hostile names on a page's handlers; a sentence for each thing that would run."""
    from space import downloads, pictures, transcript
    from space.session import Session
    from space.work import Worker

    folder.mkdir()
    model = SpeechModel.load(str(checkpoint), "torch")
    worker = Worker(model, 1.0)
    said = [Segment(float(number), number + 1.0, f"{MARK} {MARKDOWN} {number}") for number in range(2)]
    chapters = [Chapter(number, number + 1.0, MARK, number, number + 1) for number in range(2)]
    drawn = [
        transcript.transcript(said, chapters, "", True),
        pictures.evidence_buttons([Evidence(0.0, 1.0, 1.0)], said),
    ]
    if found := running(drawn):
        yield f"the page's transcript or evidence: {found}"
    for name in NAMES:
        session = Session(model)
        path = folder / name.replace("/", "")
        path.write_bytes(talk(0.5))
        if found := running([*worker.hear(str(path), "4", session), pictures.shown_name(name)]):
            yield f"the page's status of {name!r}: {found}"
        session.forget()
    for text in ("a\0b", "\ud800", "../../x", "..", ""):
        session = Session(model)
        listening = Listening(model, path)
        list(listening)
        source = dataclasses.replace(listening.memory.recording, path=text)
        kept = dataclasses.replace(listening.memory, recording=source)
        try:
            save_memory(kept, folder / "hostile.sxl", model)
            list(worker.hear(str(folder / "hostile.sxl"), "", session))
            made = Path(downloads.download("sxl", session))
            if made.parent != session.run.folder_path:
                yield f"a memory of {text!r} was written to {made}"
        except Exception as error:
            if type(error).__module__ != "speech_xl.errors":
                yield f"a memory of {text!r} on the page: {type(error).__name__}: {error}"
        session.forget()
