"""`python -m converters`: convert published weights to a Speech-XL checkpoint. Flags are mlx_lm.convert's where it has them.

Progress and errors go to stderr, what was made and left out to stdout. Wrong input is one sentence and
exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from converters.convert import convert
from converters.family import NO_REASON
from converters.hub import fetch, upload
from converters.output import check_output, output_folder
from converters.plan import make_plan, name_of
from converters.source import read_json, unread_files
from converters.stream import Packing
from converters.target import DTYPES, Options, Plan
from speech_xl.backend import install_hint, is_installed
from speech_xl.config_check import LAYOUTS
from speech_xl.errors import BackendError, CheckpointError, SpeechXLError
from speech_xl.hub import hub_client
from speech_xl.plain_text import one_line
from speech_xl.schedule import format_bytes


def parser(prog: str) -> argparse.ArgumentParser:
    """The command's flags; names are mlx_lm.convert's where it has them."""
    made = argparse.ArgumentParser(prog=prog, description="Convert published weights to a Speech-XL checkpoint.")
    add = made.add_argument
    add(
        "--hf-path",
        "--model",
        required=True,
        metavar="SOURCE",
        help="a folder, a .gguf or model.bin file, or a Hub id owner/name",
    )
    add("--decoder", metavar="SOURCE", help="the Qwen2 or Llama model to join to a Whisper source")
    add(
        "--recognizer",
        action="store_true",
        help="keep Whisper's own decoder: speech tokens are the words it recognises",
    )
    add("--mlx-path", default="mlx_model", metavar="FOLDER", help="the output folder (default: %(default)s)")
    add("--to", choices=LAYOUTS, help="layout of the output (default: torch, or mlx with -q)")
    add("--dtype", choices=tuple(DTYPES), help="type of the output's numbers (default: one that loses nothing)")
    add("-q", "--quantize", action="store_true", help="pack the decoder's weights for MLX")
    add("--q-bits", type=int, choices=(4, 8), help="bits of a packed weight (default: 4)")
    add("--q-group-size", type=int, choices=(32, 64, 128), help="weights that share a scale (default: 64)")
    add("--with-sst", action="store_true", help="add freshly initialised SST parameters, for training")
    add("--settings", type=Path, metavar="FILE", help="JSON with the output's own name, prompt, sst and the like")
    add("--revision", help="branch, tag or commit of a Hub id")
    add("--decoder-revision", help="branch, tag or commit of --decoder")
    add("--verify", action="store_true", help="re-read the output and compare it with the source")
    add("--overwrite", action="store_true", help="replace a checkpoint that has the output's name")
    add("--export-delta", metavar="FOLDER", help="write a checkpoint that names base parts and holds the difference")
    add("--parts", type=Path, metavar="FILE", help="JSON with the base parts that SOURCE was trained from")
    add("--rank", type=int, metavar="N", help="rank of the stored differences to base tensors (default: 32)")
    add("--sst-rank", type=int, metavar="N", help="rank of the SST projections' differences (default: as --rank)")
    add("--upload-repo", metavar="OWNER/NAME", help="upload the output to the Hub")
    return made


def say(line: str) -> None:
    """Print, whoever reads: a closed pipe stops neither the conversion nor an upload, and names may be no text."""
    try:
        print(one_line(line), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(plan: Plan, folders: list[Path], out: Path) -> None:
    """What was made of which commits, what was rounded, and everything of the sources that was left out."""
    parts = [plan.config.layout, plan.dtypes]
    if plan.config.quantization:
        parts.append(f"{plan.config.quantization['bits']} bits")
    say(f"{plan.family}: {len(plan.recipes)} tensors, {format_bytes(plan.size)} ({', '.join(parts)}) in {out}")
    for folder, flag in zip(folders, ("--revision", "--decoder-revision"), strict=False):
        if folder.parent.name == "snapshots":
            say(f"from commit {folder.name} of {name_of(folder)}; pass it with {flag} to get the same again")
    if plan.narrowed:
        say(f"rounded to {plan.dtypes}: {len(plan.narrowed)} tensors, {plan.narrowed[0].name} first")
    for path in (path for folder in folders if folder.is_dir() for path in unread_files(folder)):
        say(f"not read: {path.name} (not in the index, or beside the weights of {path.parent.name})")
    for name, reason in plan.unused:
        say(f"not used: {name} ({reason})")
    if plan.tokenizer is None:
        print("The source has no tokenizer; put its tokenizer.json into the output before asking.", file=sys.stderr)
    strange = [name for name, reason in plan.unused if reason == NO_REASON]
    if strange:
        said = f"{len(strange)} tensors are no part of a known {plan.family}, {strange[0]} first."
        print(one_line(said), file=sys.stderr)


def packing_of(arguments: argparse.Namespace) -> Packing | None:
    """How to pack, if at all; refused before anything is downloaded."""
    if not arguments.quantize:
        if arguments.q_bits or arguments.q_group_size:
            raise CheckpointError("--q-bits and --q-group-size are for packed weights; add -q or leave them out.")
        return None
    if not is_installed("mlx"):
        raise BackendError(f"-q packs with MLX, which is not installed; {install_hint('mlx')}.")
    return Packing(arguments.q_group_size or 64, arguments.q_bits or 4)


def run_export(arguments: argparse.Namespace) -> None:
    """--export-delta, which makes no other output."""
    from converters.export import export_delta

    if arguments.parts is None:
        raise CheckpointError(
            "--export-delta needs to know what SOURCE was trained from; name the base parts with --parts."
        )
    ranks = (arguments.rank or 32, arguments.sst_rank or arguments.rank or 32)
    if min(ranks) < 1:
        raise CheckpointError("A rank is a whole number from 1; correct --rank and --sst-rank.")
    full = fetch(arguments.hf_path, arguments.revision)
    for line in export_delta(full, arguments.parts, ranks, output_folder(arguments.export_delta)):
        say(line)


def run(arguments: argparse.Namespace) -> None:
    """Convert, or export a difference, as the flags say; SpeechXLError in one sentence if that cannot be."""
    if arguments.export_delta is not None:
        run_export(arguments)
        return
    packing = packing_of(arguments)
    layout = arguments.to or ("mlx" if packing else "torch")
    settings = read_json(arguments.settings) if arguments.settings else None
    options = Options(layout, arguments.dtype, packing, arguments.with_sst, arguments.recognizer, settings)
    out = output_folder(arguments.mlx_path)
    check_output(out, [], arguments.overwrite)  # before a download of hours
    if arguments.upload_repo:
        hub_client()
    folder = fetch(arguments.hf_path, arguments.revision)
    decoder = fetch(arguments.decoder, arguments.decoder_revision) if arguments.decoder else None
    folders = [folder] + ([decoder] if decoder else [])
    check_output(out, folders, arguments.overwrite)
    plan = make_plan(folder, decoder, options)
    verify = None
    if arguments.verify:
        from converters.verify import Verifier

        verify = Verifier(plan, folder, decoder)
    convert(plan, options, out, arguments.overwrite, verify)
    report(plan, folders, out)
    for line in verify.lines if verify else []:
        say(f"verified: {line}")
    if arguments.upload_repo:
        upload(out, arguments.upload_repo)
        say(f"uploaded to {arguments.upload_repo}")


def main(words: list[str] | None = None, prog: str = "python -m converters") -> int:
    """Run the command -> its exit code: 0, 2 for wrong input, 130 if it was stopped."""
    if sys.stderr is None:  # closed by whoever started this; progress bars need one
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        run(parser(prog).parse_args(words))
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; run the same command again, it continues.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
