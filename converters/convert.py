"""One conversion from start to end: checks, shards, and the output under its final name only when complete.

The same command continues after a kill; another one starts afresh. It knows plans and folders, no foreign
format.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from converters import stream
from converters.output import (
    JOURNAL,
    check_free,
    check_work_folder,
    discard,
    open_work_folder,
    put_in_place,
    read_journal,
    work_folder,
)
from converters.stream import Recipe, shard_names, shard_size, shards_of, write_shard
from converters.target import Options, Plan
from speech_xl.checkpoints import RECOGNIZER_TOKENIZER, check_checkpoint
from speech_xl.config_file import save_config, to_dict
from speech_xl.errors import CheckpointError, OutputError
from speech_xl.schedule import format_bytes

VERSION = 3
SPARE = 16 * 2**20  # bytes for the small files, and so that the disk is not filled to the brim
HEAD = 2**20  # bytes at a weight file's start that are hashed: its header, and some numbers


def convert(
    plan: Plan, options: Options, out: Path, overwrite: bool, verify: Callable[[Path], None] | None = None
) -> None:
    """Make `out`. Continues a conversion that was broken off; OutputError or CheckpointError if it cannot."""
    work = work_folder(out)
    shards = shards_of(plan.recipes, stream.SHARD)
    names = shard_names(len(shards))
    sizes = [shard_size(shard, options.layout) for shard in shards]
    try:
        now = journal(plan, options, sizes)
        if read_journal(out) == now:  # killed after the final rename: only the journal is left to remove
            if verify is not None:
                verify(out)
            (out / JOURNAL).unlink()
            return
        if not overwrite:
            check_free(out)
        check_work_folder(work)
        is_same = read_journal(work) == now
        finished = [is_same and is_finished(work / name, size) for name, size in zip(names, sizes, strict=True)]
        freed = 0 if is_same or not work.exists() else sum(path.stat().st_size for path in work.iterdir())
        check_disk(out, sum(size for size, done in zip(sizes, finished, strict=True) if not done) - freed)
        out.parent.mkdir(parents=True, exist_ok=True)
        open_work_folder(work, now)
        try:
            write_shards(work, names, shards, finished, options.layout)
            write_small_files(work, names, shards, plan)
            check_checkpoint(work)
            if verify is not None:
                verify(work)
        except CheckpointError:  # what is wrong once would be found wrong for ever
            discard(work)
            raise
        put_in_place(work, out, overwrite)
    except OSError as error:
        raise OutputError(describe_os_error(error, out)) from error


def describe_os_error(error: OSError, out: Path) -> str:
    """What the user reads when the output cannot be written: a full disk, or the system's reason."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk of {out} is full; make room and run the same command again, it continues."
    return f"{out} cannot be written ({error}); name another folder."


def journal(plan: Plan, options: Options, sizes: list[int]) -> dict[str, object]:
    """What identifies a conversion: the same journal, the same bytes."""
    noted = {
        "version": VERSION,
        "sources": [identity(path) for path in plan.files],
        "tokenizer": [
            t and hashlib.sha256(t.to_str().encode()).hexdigest() for t in (plan.tokenizer, plan.recognizer_tokenizer)
        ],
        "options": dataclasses.asdict(options),
        "config": to_dict(plan.config),
        "shards": sizes,
    }
    return json.loads(json.dumps(noted))  # as it will be read back: lists for tuples


def identity(path: Path) -> list[object]:
    """A weight file as it is now. Times alone can be set back, and sizes stay the same when weights are trained on."""
    stat = path.stat()
    with open(path, "rb") as file:
        head = hashlib.sha256(file.read(HEAD)).hexdigest()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, head]


def is_finished(path: Path, size: int) -> bool:
    """Shards get their final name only after their last byte reached the disk."""
    return path.is_file() and path.stat().st_size == size


def check_disk(out: Path, todo: int) -> None:
    """Before any folder is made, so that a refusal leaves nothing."""
    place = next(folder for folder in out.parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < todo + SPARE:
        missing = format_bytes(todo + SPARE - free)
        raise OutputError(f"The disk of {place} has {format_bytes(free)} free, {missing} too little; make room.")


def write_shards(work: Path, names: list[str], shards: list[list[Recipe]], finished: list[bool], layout: str) -> None:
    """Write the files of weights that are not finished yet, with a progress bar in bytes."""
    sizes = [shard_size(shard, layout) for shard in shards]
    bar_format = "converting {n_fmt}B/{total_fmt}B |{bar}| {remaining}"
    with tqdm(total=sum(sizes), unit_scale=True, bar_format=bar_format) as bar:
        for name, shard, size, done in zip(names, shards, sizes, finished, strict=True):
            if done:
                bar.update(size)
            else:
                write_shard(work / name, shard, layout, bar.update)


def write_small_files(work: Path, names: list[str], shards: list[list[Recipe]], plan: Plan) -> None:
    """Write all that is not weights: the index of several files, config.json and the tokenizers."""
    if len(shards) > 1:
        write_index(work, names, shards)
    save_config(plan.config, work)
    if plan.tokenizer is not None:
        plan.tokenizer.save(str(work / "tokenizer.json"))
    if plan.recognizer_tokenizer is not None:
        plan.recognizer_tokenizer.save(str(work / RECOGNIZER_TOKENIZER))


def write_index(work: Path, names: list[str], shards: list[list[Recipe]]) -> None:
    """The index that Hugging Face's tools expect beside several shards."""
    outputs = [
        (name, output) for name, shard in zip(names, shards, strict=True) for r in shard for output in r.outputs()
    ]
    total = sum(r.size for shard in shards for r in shard)
    index = {"metadata": {"total_size": total}, "weight_map": {output: name for name, output in outputs}}
    (work / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
