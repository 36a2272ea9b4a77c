"""One conversion from start to end: checks, shards, and the output under its final name only when complete.

Work happens in `<output>.partial`, beside the output. A journal there says what is being made of what, so
that the same command continues after a kill and another one starts afresh. It knows plans and folders, no
foreign format.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from converters import stream
from converters.plan import Options, Plan
from converters.stream import shard_names, shard_size, shards_of, write_shard
from speech_xl.checkpoints import check_checkpoint
from speech_xl.config import save_config, to_dict
from speech_xl.errors import CheckpointError, OutputError
from speech_xl.schedule import format_bytes

JOURNAL = "journal.json"
VERSION = 1
SPARE = 16 * 2**20  # bytes for the small files, and so that the disk is not filled to the brim


def check_output(out: Path, sources: list[Path], overwrite: bool) -> None:
    """OutputError if `out` may not become the output folder."""
    if any(out.resolve() == source.resolve() for source in sources):
        raise OutputError(f"{out} is the source itself; name another output folder.")
    if not out.exists():
        return
    if not overwrite:
        raise OutputError(f"{out} exists; name another folder with --mlx-path, or replace it with --overwrite.")
    if not out.is_dir() or (any(out.iterdir()) and not is_checkpoint(out)):
        raise OutputError(f"{out} is no checkpoint folder, so --overwrite does not replace it; name another folder.")


def is_checkpoint(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "speech_xl"
    except (OSError, ValueError, AttributeError):
        return False


def convert(plan: Plan, options: Options, out: Path, verify: Callable[[Path], None] | None = None) -> None:
    """Make `out`. Continues a conversion that was broken off; OutputError or CheckpointError if it cannot."""
    out = out.absolute()
    work = out.with_name(f"{out.name}.partial")
    shards = shards_of(plan.recipes, stream.SHARD)
    names = shard_names(len(shards))
    sizes = [shard_size(shard, options.layout) for shard in shards]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        open_work_folder(work, journal(plan, options, sizes))
        finished = [is_finished(work / name, size) for name, size in zip(names, sizes, strict=True)]
        todo = sum(size for size, done in zip(sizes, finished, strict=True) if not done)
        for leftover in work.glob("*.unfinished"):
            leftover.unlink()
        check_disk(work, todo)
        bar_format = "converting {n_fmt}B/{total_fmt}B |{bar}| {remaining}"
        with tqdm(total=sum(sizes), unit_scale=True, bar_format=bar_format) as bar:
            for name, shard, size, done in zip(names, shards, sizes, finished, strict=True):
                if done:
                    bar.update(size)
                else:
                    write_shard(work / name, shard, options.layout, bar.update)
        if len(shards) > 1:
            write_index(work, names, shards)
        save_config(plan.config, work)
        if plan.tokenizer is not None:
            plan.tokenizer.save(str(work / "tokenizer.json"))
        try:
            check_checkpoint(work)
            if verify is not None:
                verify(work)
        except CheckpointError:  # what is wrong once would be found wrong for ever
            clear(work)
            (work / JOURNAL).unlink()
            work.rmdir()
            raise
        put_in_place(work, out)
    except OSError as error:
        raise OutputError(describe_os_error(error, out)) from error


def describe_os_error(error: OSError, out: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk of {out} is full; make room and run the same command again, it continues."
    return f"{out} cannot be written ({error}); name another folder."


def journal(plan: Plan, options: Options, sizes: list[int]) -> dict[str, object]:
    """What identifies a conversion: the same journal, the same bytes."""
    return {
        "version": VERSION,
        "sources": [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in plan.files],
        "options": dataclasses.asdict(options),
        "config": to_dict(plan.config),
        "shards": sizes,
    }


def open_work_folder(work: Path, now: dict[str, object]) -> None:
    """Continue the work folder if it is of this very conversion, else empty it."""
    path = work / JOURNAL
    try:
        is_same = json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(now))
    except (OSError, ValueError):
        is_same = False
    if is_same:
        return
    work.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".new")
    if not path.exists() and any(p != unfinished for p in work.iterdir()):
        raise OutputError(f"{work} is in the way and not of a conversion; move it.")
    clear(work)
    unfinished.write_text(json.dumps(now), encoding="utf-8")
    os.replace(unfinished, path)


def clear(work: Path) -> None:
    """Empty a work folder but for its journal: a kill must not leave a folder that nobody knows."""
    for path in work.iterdir():
        if path.name != JOURNAL:
            path.unlink()


def is_finished(path: Path, size: int) -> bool:
    """Shards get their final name only after their last byte reached the disk."""
    return path.is_file() and path.stat().st_size == size


def check_disk(work: Path, todo: int) -> None:
    free = shutil.disk_usage(work).free
    if free < todo + SPARE:
        missing = format_bytes(todo + SPARE - free)
        raise OutputError(f"The disk of {work.parent} has {format_bytes(free)} free, {missing} too little; make room.")


def write_index(work: Path, names: list[str], shards: list[list[stream.Recipe]]) -> None:
    """The index that Hugging Face's tools expect beside several shards."""
    outputs = [
        (name, output) for name, shard in zip(names, shards, strict=True) for r in shard for output in r.outputs()
    ]
    total = sum(r.size for shard in shards for r in shard)
    index = {"metadata": {"total_size": total}, "weight_map": {output: name for name, output in outputs}}
    (work / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def put_in_place(work: Path, out: Path) -> None:
    """Give the finished folder its name; what it replaces goes only once it is there.

    Killed between any two lines, the next run finds the journal and comes here again.
    """
    old = out.with_name(f"{out.name}.partial-replaced")
    if out.exists():
        if old.exists():
            shutil.rmtree(old)
        out.rename(old)
    work.rename(out)
    (out / JOURNAL).unlink()
    if old.exists():
        shutil.rmtree(old)
