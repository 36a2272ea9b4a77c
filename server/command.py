"""`python -m speech_xl serve`: flags to settings, and the server until it is stopped."""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

from server.app import build_app
from server.settings import AUDIO_URLS, Settings
from space.address import THIS_MACHINE, bind
from space.shelf_flags import add_shelf, shelf_of
from speech_xl.arguments import parse_bytes, positive
from speech_xl.backend import BACKENDS
from speech_xl.errors import ScheduleError, SpeechXLError
from speech_xl.fetching import cache_folder
from speech_xl.model import SpeechModel
from speech_xl.plain_text import one_line
from speech_xl.schedule import format_bytes
from speech_xl.storage import MEMORY_BITS

KEYS_VARIABLE = "SPEECH_XL_API_KEYS"
SECONDS_TO_LEAVE = 5  # that requests have to end when the server is stopped
# An idle connection stays for longer than clients keep theirs, which is 5 s for OpenAI's: who closes one in the moment in
# which the other sends a request makes that request fail.
IDLE_SECONDS = 75


def amount(text: str) -> int:
    """Bytes, for argparse."""
    try:
        return parse_bytes(text)
    except ScheduleError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 1 to 999999")
    return int(text)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's flags; defaults are those of Settings."""
    usual = Settings(store=Path())
    parser = argparse.ArgumentParser(prog=prog, description="Serve an OpenAI-compatible API.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--model", help="small, nano, a checkpoint folder or a Hub id (default: small, else nano)")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS))
    parser.add_argument(
        "--memory-bits",
        type=int,
        default=16,
        choices=MEMORY_BITS,
        help="quantize memories in RAM to 8 or 4 bits (default 16: as the model computes)",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        dest="keys",
        metavar="KEY",
        help=f"a key that clients must send; repeat it for several. {KEYS_VARIABLE}=KEY,KEY does the same and keeps "
        "keys out of the process list",
    )
    parser.add_argument(
        "--store", type=Path, metavar="FOLDER", help="where memories are kept (default: the user's cache)"
    )
    for name, kind, value, what in (
        ("--store-budget", amount, usual.store_bytes, "bytes of all memories on disk"),
        ("--ram-budget", amount, usual.resident_bytes, "bytes of memories held ready in RAM, and of any one of them"),
        ("--max-upload", amount, usual.upload_bytes, "bytes of one recording"),
        ("--max-hours", positive("hours"), usual.hours, "hours of one recording"),
        ("--listening", count, usual.listening, "recordings heard at a time"),
        ("--answering", count, usual.answering, "questions answered and transcripts read at a time"),
        ("--waiting", count, usual.waiting, "how many more of each may wait; further ones are told to try again later"),
    ):
        shown = format_bytes(int(value)) if kind is amount else f"{value:g}"
        parser.add_argument(name, type=kind, default=value, metavar="N", help=f"{what} (default {shown})")
    parser.add_argument(
        "--audio-urls",
        default=usual.audio_urls,
        choices=AUDIO_URLS,
        help="which http(s) addresses recordings are fetched from; public: none of a private network (default none)",
    )
    parser.add_argument(
        "--page", action="store_true", help="the page and its MCP endpoint at /page, in the same process"
    )
    add_shelf(parser)
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The server's settings from its flags, keys of the environment included."""
    keys = [*arguments.keys, *os.environ.get(KEYS_VARIABLE, "").split(",")]
    return Settings(
        store=arguments.store or cache_folder() / "memories",
        keys=tuple(key.strip() for key in keys if key.strip()),
        is_private=arguments.host in THIS_MACHINE,
        store_bytes=arguments.store_budget,
        resident_bytes=arguments.ram_budget,
        upload_bytes=arguments.max_upload,
        hours=arguments.max_hours,
        listening=arguments.listening,
        answering=arguments.answering,
        waiting=arguments.waiting,
        audio_urls=arguments.audio_urls,
    )


def check_page(arguments: argparse.Namespace) -> None:
    """ScheduleError for flags of a page that is not served."""
    if not arguments.page and (arguments.shelf is not None or arguments.shelf_days is not None):
        raise ScheduleError("--shelf and --shelf-days are the page's; add --page, or leave them out.")


class Server(uvicorn.Server):
    """Ends what is being heard before it waits for requests to end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what is being heard first: requests that wait for it could not end otherwise."""
        app: Any = self.config.app
        app.state.service.library.close()
        await super().shutdown(sockets)


def main(words: list[str] | None = None, prog: str = "speech-xl serve") -> int:
    """Run the server until it is stopped -> its exit code."""
    arguments = build_parser(prog).parse_args(words)
    settings = settings_of(arguments)
    try:
        check_page(arguments)
        shelf = shelf_of(arguments) if arguments.page else None
        with bind(arguments.host, arguments.port) as listener:
            model = SpeechModel.load(arguments.model, arguments.backend, arguments.memory_bits)
            app = build_app(model, settings)
            if shelf is not None:
                from server.page import add_page  # gradio takes seconds to import

                app = add_page(app, model, settings, shelf)
            if model.note:
                print(model.note, file=sys.stderr)
            if not settings.keys and arguments.host not in THIS_MACHINE:
                print(
                    "No API key is set: anyone who reaches this address may ask, and all share their memories.",
                    file=sys.stderr,
                )
            address = f"http://{arguments.host}:{listener.getsockname()[1]}/v1"
            print(f"{one_line(model.config.name)} answers at {address}; Ctrl-C ends it.", file=sys.stderr, flush=True)
            config = uvicorn.Config(
                app,
                log_level="warning",
                timeout_graceful_shutdown=SECONDS_TO_LEAVE,
                timeout_keep_alive=IDLE_SECONDS,
            )
            Server(config).run(sockets=[listener])
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # uvicorn has ended everything by now
        return 0
    return 0
