"""`python app.py`: parse flags, load a model, build the page, launch. Also the entry point of the Space."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no telemetry; read when gradio is imported

from space.address import THIS_MACHINE, bind
from space.page import build_page, look
from space.shelf_flags import add_shelf, shelf_of
from speech_xl.arguments import positive
from speech_xl.backend import BACKENDS
from speech_xl.errors import SpeechXLError
from speech_xl.model import SpeechModel

LARGEST_UPLOAD = "2gb"  # some hours of uncompressed sound


def main() -> int:
    """Parse the flags, build the page and serve it -> the exit code."""
    parser = argparse.ArgumentParser(description="Speech-XL: ask recordings of any length, in the browser.")
    parser.add_argument("--host", default=None, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=None, help="default: 7860, or the next free one; 0: any free one")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's servers")
    parser.add_argument("--auth", metavar="NAME:PASSWORD", help="ask visitors for this name and password")
    parser.add_argument(
        "--max-hours", type=positive("hours"), default=10.0, metavar="N", help="longest recording that is accepted"
    )
    add_shelf(parser)
    parser.add_argument("--model", help="small, nano, a checkpoint folder or a Hub id (default: small, else nano)")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS))
    arguments = parser.parse_args()
    name, colon, password = (arguments.auth or "").partition(":")
    if arguments.auth is not None and not (name and colon and password):
        print("--auth needs a name and a password, like visitor:secret.", file=sys.stderr)
        return 2
    try:
        if arguments.host is not None or arguments.port is not None:  # gradio would look for minutes, and fail
            with bind(arguments.host or THIS_MACHINE[0], arguments.port or 0) as free:
                if arguments.port == 0:  # any free one, which gradio does not find by itself
                    arguments.port = free.getsockname()[1]
        shelf = shelf_of(arguments)
        model = SpeechModel.load(arguments.model, arguments.backend)
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    if model.note:
        print(model.note, file=sys.stderr)
    # A choice of models reads folders of this machine, so only a page for this machine alone offers it.
    is_private = not arguments.share and arguments.host in (None, *THIS_MACHINE)
    is_private = is_private and not {"SPACE_ID", "GRADIO_SERVER_NAME", "GRADIO_SHARE"} & set(os.environ)
    page = build_page(model, arguments.max_hours, can_choose=is_private, shelf=shelf)
    # Gradio's endpoint for agents knows no login, and would show itself to everybody.
    for_agents = not arguments.auth and importlib.util.find_spec("mcp") is not None
    page.queue(default_concurrency_limit=4, max_size=64).launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=arguments.share,
        auth=(name, password) if arguments.auth else None,
        max_file_size=LARGEST_UPLOAD,
        mcp_server=for_agents,
        **look(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
