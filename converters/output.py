"""The folders of one conversion: which output may be replaced, where the work happens, and the final rename.

Work happens in `<output>.partial`, beside the output, with a journal that says what is being made of what.
Nothing is deleted that this program did not make: every entry must have a name from `MADE`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from pathlib import Path

from speech_xl.errors import OutputError

JOURNAL = "journal.json"
UNFINISHED_JOURNAL = "journal.unfinished"
JOURNAL_KEYS = {"version", "sources", "tokenizer", "options", "config", "shards"}
MADE = re.compile(
    r"(config|tokenizer|recognizer_tokenizer|journal|model\.safetensors\.index)\.json|journal\.unfinished"
    r"|model(-\d{5,}-of-\d{5,})?\.(safetensors|unfinished)"
)


def output_folder(name: str) -> Path:
    """The absolute folder without links: with --overwrite, what a link points to is replaced, not the link."""
    try:
        out = Path(name).expanduser().resolve()
        for path in (out, work_folder(out), name_aside(out)):
            path.exists()  # too long a name is found here and not after hours
        str(out).encode()  # libraries that write files refuse names that are no text
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"{name!r} cannot be an output folder ({error}); name another one.") from None
    return out


def work_folder(out: Path) -> Path:
    """Where an output is put together, beside the place it gets its name."""
    return out.with_name(f"{out.name}.partial")


def name_aside(out: Path) -> Path:
    """A name that nothing has yet, for the folder that is being replaced."""
    return out.with_name(f"{out.name}.replaced-{uuid.uuid4().hex[:8]}")


def check_output(out: Path, sources: list[Path], overwrite: bool) -> None:
    """OutputError if `out` may not become the output folder of a conversion of `sources`."""
    for source in sources:
        for path in (
            source,
            *(source.iterdir() if source.is_dir() else ()),
        ):  # a Hub snapshot's files are links to elsewhere
            check_apart(path.resolve(), out)
    if overwrite and out.exists():
        check_replaceable(out)
    if not overwrite and read_journal(out) is None:  # with one, a kill after the final rename may be finished
        check_free(out)


def check_apart(source: Path, out: Path) -> None:
    """OutputError where writing the output would replace its own source."""
    if source == out:
        raise OutputError(f"{out} is the source itself; name another output folder.")
    for folder in (out, work_folder(out)):
        if folder == source or folder in source.parents:
            raise OutputError(f"The source {source} is inside {folder}, which would be replaced; move the source.")


def check_free(out: Path) -> None:
    """OutputError if the output exists."""
    if out.exists():
        raise OutputError(f"{out} exists; name another folder with --mlx-path, or replace it with --overwrite.")


def check_replaceable(out: Path) -> None:
    """OutputError unless the output is a checkpoint folder with nothing else in it."""
    if not out.is_dir() or (any(out.iterdir()) and not is_checkpoint(out)):
        raise OutputError(f"{out} is no checkpoint folder, so --overwrite does not replace it; name another folder.")
    if name := stranger(out):
        raise OutputError(
            f"{out} holds {name}, which no conversion makes, so --overwrite does not replace it; move {name} away."
        )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder's config.json is one of ours."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "speech_xl"
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def stranger(folder: Path) -> str | None:
    """The first entry that no conversion makes."""
    return next((p.name for p in sorted(folder.iterdir()) if not MADE.fullmatch(p.name) or p.is_dir()), None)


def read_journal(folder: Path) -> dict[str, object] | None:
    """What a conversion noted in its folder; None if the folder is of none."""
    try:
        data = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and set(data) == JOURNAL_KEYS else None


def check_work_folder(work: Path) -> None:
    """OutputError if something that is no broken-off conversion has the work folder's name."""
    if not os.path.lexists(work):
        return
    if work.is_symlink() or not work.is_dir():
        raise OutputError(f"{work} is in the way and was not made by a conversion; move it.")
    if name := stranger(work):
        raise OutputError(f"{work} holds {name}, which no conversion makes; move {name} away.")
    names = {path.name for path in work.iterdir()}
    if names - {UNFINISHED_JOURNAL} and read_journal(work) is None:
        raise OutputError(f"{work} is in the way and was not made by a conversion; move it.")


def open_work_folder(work: Path, now: dict[str, object]) -> None:
    """Continue the work folder if it is of this very conversion, else empty it."""
    work.mkdir(exist_ok=True)
    if read_journal(work) == now:
        for path in work.glob("*.unfinished"):
            path.unlink()
        return
    clear(work)
    unfinished = work / UNFINISHED_JOURNAL
    unfinished.write_text(json.dumps(now), encoding="utf-8")
    os.replace(unfinished, work / JOURNAL)


def clear(work: Path) -> None:
    """Empty a work folder but for its journal: a kill must not leave a folder that nobody knows."""
    for path in work.iterdir():
        if path.name != JOURNAL and MADE.fullmatch(path.name):
            path.unlink()


def discard(work: Path) -> None:
    """Remove a broken-off conversion's folder, but no file that somebody else put there."""
    clear(work)
    (work / JOURNAL).unlink()
    with contextlib.suppress(OSError):  # somebody put a file of theirs there meanwhile
        work.rmdir()


def put_in_place(work: Path, out: Path, overwrite: bool) -> None:
    """Give the finished folder its name; what it replaces goes only once it is there.

    Without --overwrite the rename itself refuses an output that somebody made meanwhile.
    """
    old = None
    if overwrite and out.exists():
        check_replaceable(out)  # hours have passed since the first look
        old = name_aside(out)
        out.rename(old)
    try:
        work.rename(out)
    except BaseException as error:
        if old is not None and not out.exists():
            old.rename(out)
        if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise OutputError(
                f"{out} appeared while the conversion ran; move it and run the same command again, it continues."
            ) from None
        raise
    if old is not None:
        shutil.rmtree(old)
    (out / JOURNAL).unlink()  # last: until then the same command ends what a kill left
