"""From a checkpoint that names base parts to a whole one in the user's cache, made once and kept.

The whole one is found again by what it was made of: config.json, the checkpoint's own files and, through
config.json, the parts' hashes. Reading foreign formats is not the core's; a module that can is loaded by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from speech_xl.config import ModelConfig
from speech_xl.errors import BackendError, CheckpointError
from speech_xl.fetching import cache_folder, fetch_part, is_full, slug
from speech_xl.file_hashes import sha256_of

LOG = logging.getLogger(__name__)
ASSEMBLER = "converters.assemble"  # assemble(folder, part folders, output)
VERSION = 1  # of the assembler's rule; another rule makes other checkpoints


def assembled(folder: Path, config: ModelConfig) -> Path:
    """The whole checkpoint of a folder whose `config` has parts; CheckpointError says what to do if there is none.

    Several processes may ask at once: one works, the others wait. A kill at any time leaves what can be continued.
    """
    cache = cache_folder()
    try:
        out = cache / "checkpoints" / f"{slug(config.name)}-{key_of(folder)[:16]}"
        if out.is_dir():
            return out
        cache.mkdir(parents=True, exist_ok=True)
        with only_one(cache / "lock"):
            if not out.is_dir():
                check_room(cache, folder, config)
                parts = [fetch_part(part, folder, cache) for part in config.parts]
                load_assembler()(folder, parts, out)
    except OSError as error:
        if is_full(error):
            raise CheckpointError(full_disk(cache)) from error
        raise CheckpointError(
            f"The cache {cache} cannot be used ({error}); set SPEECH_XL_CACHE to another folder."
        ) from error
    return out


def key_of(folder: Path) -> str:
    """sha256 over everything that the whole checkpoint is made of."""
    total = hashlib.sha256(f"{VERSION}\n".encode())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        total.update(f"{path.name} {sha256_of(path)}\n".encode())
    return total.hexdigest()


def check_room(cache: Path, folder: Path, config: ModelConfig) -> None:
    """Before anything is fetched. A whole checkpoint has about the size of its parts, unpacked to 16 bits."""
    missing = sum(part.size for part in config.parts)
    if shutil.disk_usage(cache).free < missing:
        raise CheckpointError(full_disk(cache))


def full_disk(cache: Path) -> str:
    """What the user reads when the cache's disk is full."""
    return (
        f"The disk of the cache {cache} is full; make room or set SPEECH_XL_CACHE to another folder, and run it again, "
        "it continues."
    )


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of a killed one."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        LOG.warning("Another process is preparing this model; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def load_assembler() -> Callable[[Path, list[Path], Path], None]:
    """What puts parts together, imported when it is needed: it knows a framework, this package does not."""
    try:
        assemble: Callable[[Path, list[Path], Path], None] = importlib.import_module(ASSEMBLER).assemble
    except ImportError as error:
        raise BackendError(
            f"A model made of base parts cannot be assembled here ({error}); pip install -r requirements.txt."
        ) from error
    return assemble
