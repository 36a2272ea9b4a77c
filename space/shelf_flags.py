"""The flags that say where the page's visitors keep memories, for both programs that serve the page."""

from __future__ import annotations

import argparse
from pathlib import Path

from space.shelf import LEASE_DAYS, Shelf
from speech_xl.arguments import positive
from speech_xl.fetching import cache_folder


def add_shelf(parser: argparse.ArgumentParser) -> None:
    """`--shelf` and `--shelf-days`; both are None where they are not given."""
    parser.add_argument(
        "--shelf",
        type=Path,
        metavar="FOLDER",
        help="where the page's visitors keep memories (default: the user's cache)",
    )
    parser.add_argument(
        "--shelf-days",
        type=positive("days"),
        metavar="N",
        help=f"how long a memory that nobody opens stays on the shelf (default {LEASE_DAYS:g})",
    )


def shelf_of(arguments: argparse.Namespace) -> Shelf:
    """The shelf that the flags name; OutputError if its folder cannot be used."""
    return Shelf(arguments.shelf or cache_folder() / "shelf", arguments.shelf_days or LEASE_DAYS)
