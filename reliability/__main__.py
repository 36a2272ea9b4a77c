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
    words = sys.argv[1:] if words is None else words
    first = argparse.ArgumentParser(
        prog="python -m reliability",
        description="Try to break Speech-XL.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    told = "\n".join(f"{name}: {what}" for name, what in CAMPAIGNS.items())
    first.add_argument("campaign", choices=CAMPAIGNS, metavar="CAMPAIGN", help=told)
    name = first.parse_args(words[:1]).campaign
    module = importlib.import_module(f"reliability.{name}")  # each has imports of its own, some of them long
    parser = argparse.ArgumentParser(
        prog=f"python -m reliability {name}", description=f"{CAMPAIGNS[name].capitalize()}."
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default 0)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder, for what is made")
    module.add_arguments(parser)
    arguments = parser.parse_args(words[1:])
    output = arguments.output.absolute()
    if output.exists() and any(output.iterdir()):
        parser.error(f"{output} is not empty; name a new folder")
    output.mkdir(parents=True, exist_ok=True)
    code: int = module.main(arguments, output)
    return code


if __name__ == "__main__":
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.exit(main())
