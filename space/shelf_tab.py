"""The page's shelf: the visitor's kept memories as a table, and what its buttons do.

It knows the shelf, sessions and components; how a memory lies on disk is shelf.py's. The browser keeps the secret that
says whose shelf it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from space import pictures
from space.handlers import Handlers
from space.joined import join_opened
from space.session import Session
from space.shelf import DAY, Kept, Shelf, new_secret
from space.talk import PRIVATE, Talk, fetch, offer
from speech_xl.clock import clock
from speech_xl.errors import OutputError, RecordingError, SpeechXLError
from speech_xl.schedule import format_bytes

STORAGE_KEY = "speech-xl-shelf"
EMPTY = (
    "Nothing is kept yet. Listen to a recording on the first tab, then press Keep on shelf: its memory, its words and its "
    "time line stay here, without the sound, until you delete them or have not opened them for {days:g} days."
)


@dataclass
class ShelfHandlers:
    """Event handlers of the shelf; each takes the visitor's secret and, where it needs it, their Session."""

    handlers: Handlers
    shelf: Shelf

    def arrive(self, secret: str | None) -> tuple[str, str]:
        """The page was opened -> the visitor's secret, a new one at first; their table."""
        secret = secret if isinstance(secret, str) and secret else new_secret()
        return secret, self.table(secret)

    def table(self, secret: str) -> str:
        """HTML of a visitor's shelf."""
        return draw(self.shelf.entries(secret), self.handlers.model.fingerprint, self.shelf.days)

    def keep(self, session: Session | None, secret: str | None) -> tuple[str, str]:
        """-> table, status."""
        with told():
            run = session.run if session is not None else None
            memory = run.memory if run is not None else None
            if session is None or run is None or memory is None:
                raise RecordingError("There is no memory to keep yet; listen to a recording first.")
            if not secret:
                raise OutputError(
                    "This browser stores nothing, so your shelf would be lost; download the memory instead."
                )
            name = Path(run.name).stem
            self.shelf.keep(secret, name, memory, run.events, session.model)
        return self.table(secret), f"{escape(name)} is on your shelf. It can be opened there without the audio."

    def open(self, secret: str, session: Session | None, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """-> table, chat, evidence, what the page shows of a recording. Several memories are asked as one."""
        session = self.handlers.enter(session, request)
        with told():
            opened = [self.shelf.open(secret, identifier, session.model) for identifier in event.ids]
            name, memory, events = join_opened(session.model, opened)
        session.forget()
        run = session.run
        run.title, run.events = name, events
        self.handlers.make_ready(session.model, run, memory)
        status = f"{escape(name)}: {clock(memory.seconds)}, from your shelf. Ask; the audio is not needed."
        return self.table(secret), [], pictures.evidence_buttons(()), *self.handlers.draw(session, status)

    def download(
        self, secret: str, session: Session | None, event: gr.EventData, request: gr.Request
    ) -> tuple[str, Session]:
        """-> a file for the browser, session."""
        session = self.handlers.enter(session, request)
        with told():
            return str(self.shelf.copy(secret, event.id, session.run.folder_path)), session

    def rename(self, secret: str, event: gr.EventData) -> str:
        """Rename what the event names -> the table anew."""
        with told():
            self.shelf.rename(secret, event.id, event.name)
        return self.table(secret)

    def delete(self, secret: str, event: gr.EventData) -> str:
        """Delete what the event names -> the table anew."""
        with told():
            self.shelf.delete(secret, event.id)
        return self.table(secret)


class told:
    """What a person can mend is shown on the page, as a sentence."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SpeechXLError):
            raise gr.Error(str(error), print_exception=False) from error


def draw(entries: list[Kept], fingerprint: str, days: float) -> str:
    """A table with a row a memory, and which model made it if it is not the page's own, whose `fingerprint` is given."""
    if not entries:
        return f'<p class="sxl-note">{EMPTY.format(days=days)}</p>'
    rows = "".join(_row(kept, kept.header.fingerprint == fingerprint, days) for kept in entries)
    head = "".join(f'<th scope="col">{n}</th>' for n in ("name", "length", "kept", "size", "ratio"))
    total = sum(kept.bytes for kept in entries)
    together = '<button type="button" data-do="join">Open ticked memories together</button>' if len(entries) > 1 else ""
    note = f"{len(entries)} kept, {format_bytes(total)}. A memory that nobody opens for {days:g} days is deleted."
    return (
        f'<p class="sxl-note">{note}</p><div class="sxl-row-buttons">{together}</div><div class="sxl-scroll" tabindex="0" role="region" aria-label="Kept memories">'
        f'<table class="sxl-table sxl-shelf"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(kept: Kept, is_own: bool, days: float) -> str:
    name = escape(kept.name, quote=True)
    made = time.strftime("%-d %b %Y", time.localtime(kept.created))
    left = max(0.0, days - (time.time() - kept.opened) / DAY)
    ratios = {"raw" if r is None else f"{r} to 1" for r in kept.header.ratios}
    cells = (
        clock(kept.header.recording.seconds_heard),
        f"{made}<br><small>{left:.0f} days left</small>",
        format_bytes(kept.bytes),
        escape(" and ".join(sorted(ratios))) + ("" if is_own else f"<br><small>by {escape(kept.header.model)}</small>"),
    )
    buttons = "".join(
        f'<button type="button" data-do="{do}" data-id="{kept.id}" data-name="{name}" aria-label="{label} {name}">{label}</button>'
        for do, label in (("open", "Open"), ("download", "Download"), ("edit", "Rename"), ("delete", "Delete"))
    )
    data = "".join(f"<td>{cell}</td>" for cell in cells)
    tick = f'<input type="checkbox" value="{kept.id}" aria-label="Take {name} along"> '
    return f'<tr><th scope="row">{tick}{name}<div class="sxl-row-buttons">{buttons}</div></th>{data}</tr>'


def browser_secret() -> gr.BrowserState:
    """For the page itself, outside its tabs: a tab that was never opened would not store it."""
    return gr.BrowserState(None, storage_key=STORAGE_KEY, secret=STORAGE_KEY)


def build_shelf(
    tab: ShelfHandlers, secret: gr.BrowserState, session: gr.State, talk: Talk, tabs: gr.Tabs, page: gr.Blocks
) -> None:
    """The tab, and the first tab's Keep button. What is opened is shown on the first tab."""
    gr.Markdown(
        "Memories that you have kept. They answer without the audio, and are still here after this page has been restarted."
    )
    table = gr.HTML(
        draw([], "", tab.shelf.days), elem_id="sxl-shelf", padding=False, js_on_load="sxlShelf(element, trigger)"
    )
    page.load(tab.arrive, secret, [secret, table], **PRIVATE)
    talk.keep.click(tab.keep, [session, secret], [table, talk.status], **PRIVATE)
    table.select(tab.open, [secret, session], [table, *talk.asked, *talk.heard], **PRIVATE).success(
        lambda: gr.Tabs(selected="ask"), None, tabs, **PRIVATE
    )
    table.select(lambda s: offer(s.model if s else tab.handlers.model, False), session, talk.offered, **PRIVATE)
    fetch(table.download(tab.download, [secret, session], [talk.file, session], **PRIVATE), talk.file)
    table.edit(tab.rename, secret, table, **PRIVATE)
    table.delete(tab.delete, secret, table, **PRIVATE)
