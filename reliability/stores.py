"""What keeps files without being a command, in the shape of one: the page's downloads and the server's store of memories."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from reliability.fuzz_targets import BOUNDARY, form, post
from reliability.subjects import Subject
from speech_xl.errors import SpeechXLError
from tests.tiny import save_checkpoint, tiny_recognizer_config, write_sound

NO_ROOM = 507  # HTTP: Insufficient Storage


def page(inputs: Path) -> Subject:
    """A visitor downloads the memory, the conversation and the transcript."""
    checkpoint = save_checkpoint(inputs / "tiny", tiny_recognizer_config())
    recording = write_sound(inputs / "talk.wav", 3.0)

    def download(words: list[str]) -> int:
        from space.downloads import download as export
        from space.session import Session
        from speech_xl.conversation import Listening, ask
        from speech_xl.model import SpeechModel

        model = SpeechModel.load(str(checkpoint), "torch")
        session = Session(model)
        visit = session.run
        folder: Any = SimpleNamespace(name=words[0], cleanup=lambda: None)
        visit.folder = folder
        listening = Listening(model, recording)
        visit.events = list(listening)
        visit.memory = listening.memory
        asking = ask(model, visit.memory, "what is order 4?", 4)
        for _ in asking:
            pass
        visit.answers.append(asking.answer)
        try:
            for kind in ("sxl", "json", "md"):
                export(kind, session)
        except SpeechXLError as error:
            print(error, file=sys.stderr)
            return 2
        return 0

    def counts(name: str, data: bytes) -> bytes:
        return re.sub(rb'"seconds": [\d.e-]+', b'"seconds": 0', data)  # that an answer took

    return Subject("page", lambda folder: [str(folder)], counts, call=download)


def server(inputs: Path) -> Subject:
    """A client's recording is heard and its memory kept; where it cannot be kept the client is told so."""
    checkpoint = save_checkpoint(inputs / "tiny", tiny_recognizer_config())

    def keep(words: list[str]) -> int:
        from server.app import build_app
        from server.settings import Settings
        from speech_xl.model import SpeechModel
        from tests.serving import talk

        model = SpeechModel.load(str(checkpoint), "torch")
        try:
            app = build_app(model, Settings(store=Path(words[0]) / "store"))
        except SpeechXLError as error:
            print(error, file=sys.stderr)
            return 2
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        status = asyncio.run(post(app, "/v1/memories", kind, form(talk(3.0), {})))
        if status == NO_ROOM:
            print("The server said that it has no room.", file=sys.stderr)
            return 2
        return 0 if status == 200 else 1

    return Subject("server", lambda folder: [str(folder)], call=keep)


STORES: dict[str, Callable[[Path], Subject]] = {"page": page, "server": server}
