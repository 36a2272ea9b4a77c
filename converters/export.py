"""`--export-delta`: a whole trained checkpoint as one that names its base parts and holds the difference only.

Where a tensor has a base its difference is stored as the nearest product of two low-rank factors (singular value
decomposition, Eckart and Young 1936), in 8 bits with a scale per rank; what has no base is stored whole; what did not
change, not at all.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from converters.assemble import base_tensors
from converters.formats import open_source
from converters.output import check_free
from converters.source import Stored, read_json, tensors_of
from converters.stream import shard_names
from speech_xl.base_parts import parts_from
from speech_xl.checkpoints import LOW_RANK, RECOGNIZER_TOKENIZER, base_name, check_checkpoint, expected_tensors
from speech_xl.config import SSTConfig
from speech_xl.config_file import save_config
from speech_xl.errors import CheckpointError, OutputError
from speech_xl.fetching import cache_folder, fetch_part
from speech_xl.schedule import format_bytes

LARGEST_FILE, LARGEST_TOTAL = 48 * 10**6, 64 * 10**6  # bytes that a repository may well hold
HEADER = 2**17  # bytes that are left free in a file for the tensors' names and places
LAYOUT = torch.float16
LEFT_OUT = 1e-4  # share of a difference (its square) that factors may leave out to have fewer ranks


def export_delta(full: Path, parts_file: Path, ranks: tuple[int, int], out: Path) -> list[str]:
    """Write `out`; -> lines that say what was stored and how exact it is.

    `ranks`: of the decoder's differences, and of the SST projections'. CheckpointError or OutputError if there is
    no such checkpoint, or if it would be larger than LARGEST_TOTAL.
    """
    check_free(out)
    config = check_checkpoint(full)
    if config.quantization or config.layout != "torch":
        raise CheckpointError(f"{full} is in MLX's layout or packed; export the torch checkpoint that was trained.")
    parts = parts_from(read_json(parts_file).get("parts"))
    folders = [fetch_part(part, parts_file.parent, cache_folder()) for part in parts]
    base = base_tensors([open_source(folder) for folder in folders])
    stored, lines = differences(tensors_of(full), base, list(expected_tensors(config)), ranks, config.sst)
    kept = [path for name in ("tokenizer.json", RECOGNIZER_TOKENIZER) if (path := full / name).is_file()]
    total = sum(t.nbytes for t in stored.values()) + sum(path.stat().st_size for path in kept)
    if total > LARGEST_TOTAL:
        raise CheckpointError(
            f"With these ranks the checkpoint would have {format_bytes(total)}, more than {format_bytes(LARGEST_TOTAL)}; "
            "take smaller ones (--rank, --sst-rank)."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
        try:
            save_config(dataclasses.replace(config, parts=parts, dtype="float16"), work)
            for path in kept:
                shutil.copyfile(path, work / path.name)
            shards = split(stored)
            for name, shard in zip(shard_names(len(shards)), shards, strict=True):
                save_file(shard, work / name, {"format": "pt"})
            check_checkpoint(work)
            work.chmod(0o755)
            work.rename(out)
        except BaseException:
            shutil.rmtree(work)
            raise
    except (OSError, SafetensorError) as error:  # a full disk is a SafetensorError
        raise OutputError(f"{out} cannot be written ({error}); name another folder.") from error
    return [*lines, f"{format_bytes(total)} in {out}, beside base parts of {format_bytes(sum(p.size for p in parts))}"]


def differences(
    trained: dict[str, Stored], base: dict[str, Stored], names: list[str], ranks: tuple[int, int], sst: SSTConfig | None
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """-> (what is to be stored, lines about it)."""
    stored: dict[str, torch.Tensor] = {}
    counts = {"whole": 0, "low-rank": 0, "unchanged": 0}
    missed = changed = 0.0  # squared sums of what the factors leave out, and of what there was
    worst = (0.0, "")
    for name in names:
        numbers, origin = trained[name].whole(), base_name(name, sst)
        source = base.get(origin or "")
        if origin is not None and (source is None or source.shape != numbers.shape):
            stored[name] = numbers.to(LAYOUT)
            counts["whole"] += 1
            continue
        start = torch.zeros(numbers.shape) if source is None else source.whole().float()
        if torch.equal(numbers.to(LAYOUT), start.to(LAYOUT)):
            counts["unchanged"] += 1
            continue
        rank = ranks["sst_" in name]
        if (
            numbers.dim() != 2
            or rank >= min(numbers.shape)
            or rank * sum(numbers.shape) >= LAYOUT.itemsize * numbers.numel()
        ):
            stored[name] = numbers.to(LAYOUT)
            counts["whole"] += 1
            continue
        difference = numbers.double() - start.double()
        a, b, scale = factors(difference, rank)
        error = float((difference - b.double() @ (a.double() * scale.double()[:, None])).square().sum())
        size = float(difference.square().sum())
        missed, changed, worst = missed + error, changed + size, max(worst, ((error / size) ** 0.5, name))
        stored |= {name + ending: part for ending, part in zip(LOW_RANK, (a, b, scale), strict=True)}
        counts["low-rank"] += 1
    if not all(torch.isfinite(t).all() for t in stored.values() if t.is_floating_point()):
        raise CheckpointError(
            "The checkpoint has numbers that do not fit float16; train it further, or store it whole."
        )
    lines = [", ".join(f"{count} tensors {what}" for what, count in counts.items())]
    if changed:
        lines.append(
            f"relative error of the differences {(missed / changed) ** 0.5:.3f}, at most {worst[0]:.3f} ({worst[1]})"
        )
    return stored, lines


def factors(difference: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(r, in) and (out, r) int8, (r,) float32 s: B @ diag(s) @ A is near the best of this rank to (out, in).

    A difference that fewer ranks hold, as an adapter's, but for LEFT_OUT of it, gets those.
    """
    tall = difference if difference.shape[0] >= difference.shape[1] else difference.T
    squares, vectors = torch.linalg.eigh(tall.T @ tall)  # of the smaller side: squared singular values, ascending
    left_out = squares.clamp(min=0).cumsum(0) <= LEFT_OUT * squares.sum()
    rank = max(1, min(rank, len(squares) - int(left_out.sum())))
    narrow = vectors[:, -rank:].T
    long = tall @ narrow.T
    a, b = (narrow, long) if tall is difference else (long.T, narrow.T)
    a, of_a = eight_bits(a, 1)
    b, of_b = eight_bits(b, 0)
    return a, b, (of_a * of_b).float()


def eight_bits(numbers: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 of the same shape, and the scale of each vector along `axis`: (r,)."""
    scale = numbers.abs().amax(axis).clamp(min=1e-30) / 127
    return (numbers / scale.unsqueeze(axis)).round().to(torch.int8).contiguous(), scale


def split(stored: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Consecutive tensors, in files of at most LARGEST_FILE."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in stored.items():
        if tensor.nbytes + HEADER > LARGEST_FILE:
            raise CheckpointError(f"The tensor {name} alone has {format_bytes(tensor.nbytes)}; take a smaller --rank.")
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes + HEADER > LARGEST_FILE:
            shards.append({})
        shards[-1][name] = tensor.contiguous()
    return shards
