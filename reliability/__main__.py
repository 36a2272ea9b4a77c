"""`python -m reliability CAMPAIGN --seed N --output FOLDER`: one campaign, its findings on stdout and in FOLDER.

Exit code 0 means that nothing was found. What a campaign does is its own module's subject.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

CAMPAIGNS = {
    "kill": "kill commands without warning, and run them again",
    "fuzz": "feed damaged files and requests to whatever reads them",
    "disk": "run commands on full and on read-only disks",
    "clients": "many clients at one server",
    "hostile": "names, texts and files that mean harm",
}
# One thread of computing, no network and no messages: set before a framework is imported.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


def main(words: list[str] | None = None) -> int:
    """Run the campaign that the words name -> its exit code."""
    parser = argparse.ArgumentParser(prog="python -m reliability", description="Try to break Speech-XL.")
    commands = parser.add_subparsers(dest="campaign", metavar="CAMPAIGN", required=True)
    modules = {name: importlib.import_module(f"reliability.{name}") for name in CAMPAIGNS}
    for name, what in CAMPAIGNS.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        command.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default 0)")
        command.add_argument(
            "--output", type=Path, required=True, metavar="FOLDER", help="a new folder, for what is made"
        )
        modules[name].add_arguments(command)
    arguments = parser.parse_args(words)
    output = arguments.output.absolute()
    if output.exists() and any(output.iterdir()):
        parser.error(f"{output} is not empty; name a new folder")
    output.mkdir(parents=True, exist_ok=True)
    return modules[arguments.campaign].main(arguments, output)


if __name__ == "__main__":
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.exit(main())
