"""`python -m space.deploy NAME/SPACE`: put exactly the files that a Space needs on the Hugging Face Hub.

It knows which files those are and nothing of their content.
"""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatch
from pathlib import Path

from speech_xl.checkpoints import EMBEDDED_FOLDER

ROOT = Path(__file__).parent.parent
# fnmatch patterns as huggingface_hub reads them: * also matches /
NEEDED = (
    "README.md",
    "LICENSE",
    "app.py",
    "requirements.txt",
    "packages.txt",
    "docs/images/*.png",
    "speech_xl/*.py",
    "space/*.py",
    "space/*.css",
    "space/*.js",
    "space/examples/*",
    "torch_backend/*.py",
    "converters/*.py",
    "checkpoints/nano/*",
    "checkpoints/small/*",
)
LEFT_OUT = ("checkpoints/small/parts/*", "space/deploy.py", "*__pycache__*", "*/.*")


def space_files(root: Path = ROOT) -> list[str]:
    """The files of a Space, relative to `root`, in order."""
    names = sorted(p.relative_to(root).as_posix() for folder in _roots(root) for p in _walk(folder))
    wanted = (n for n in names if any(fnmatch(n, pattern) for pattern in NEEDED))
    return [n for n in wanted if not any(fnmatch(n, pattern) for pattern in LEFT_OUT)]


def _roots(root: Path) -> list[Path]:
    """What the patterns start with; nothing else is walked, however large."""
    return [root / name for name in sorted({pattern.split("/")[0] for pattern in NEEDED}) if (root / name).exists()]


def _walk(path: Path) -> list[Path]:
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def main(arguments: list[str] | None = None) -> int:
    """Upload the Space's files, or list them -> the exit code."""
    parser = argparse.ArgumentParser(prog="python -m space.deploy", description=__doc__.partition("\n")[0])
    parser.add_argument("space", help="NAME/SPACE on the Hub")
    parser.add_argument("--dry-run", action="store_true", help="list the files and upload nothing")
    parser.add_argument("--private", action="store_true", help="if the Space is new, make it private")
    chosen = parser.parse_args(arguments)
    files = space_files()
    if not (EMBEDDED_FOLDER / "config.json").exists():
        print(f"There is no model in {EMBEDDED_FOLDER}; train or fetch one first.", file=sys.stderr)
        return 2
    if chosen.dry_run:
        size = sum((ROOT / name).stat().st_size for name in files)
        print(*files, f"{len(files)} files, {size / 2**20:.1f} MiB", sep="\n")
        return 0
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(chosen.space, repo_type="space", space_sdk="gradio", private=chosen.private, exist_ok=True)
        done = api.upload_folder(
            repo_id=chosen.space,
            repo_type="space",
            folder_path=ROOT,
            allow_patterns=files,
            commit_message="Update Speech-XL",
            delete_patterns="*",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        print(
            f"The Hub rejected the upload ({error}); log in with `hf auth login` and check the name.", file=sys.stderr
        )
        return 2
    print(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
