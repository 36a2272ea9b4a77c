"""`python -m converters`: published weights to a Speech-XL checkpoint. Flags are mlx_lm.convert's where it has them.

Progress and errors go to stderr, what was made and left out to stdout. Wrong input is one sentence and
exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from converters.convert import check_output, convert
from converters.family import NO_REASON
from converters.plan import DTYPES, Options, Plan, make_plan
from converters.source import fetch
from converters.stream import Packing
from speech_xl.errors import OutputError, SpeechXLError
from speech_xl.schedule import format_bytes


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m converters", description=__doc__.split(". ")[0])
    add = made.add_argument
    add("--hf-path", "--model", required=True, metavar="SOURCE", help="a folder, or a Hub id owner/name")
    add("--decoder", metavar="SOURCE", help="the Qwen2 or Qwen2.5 model to join to a Whisper source")
    add("--mlx-path", default="mlx_model", metavar="FOLDER", help="the output folder (default: %(default)s)")
    add("--to", choices=("torch", "mlx"), help="layout of the output (default: torch, or mlx with -q)")
    add("--dtype", choices=tuple(DTYPES), help="type of the output's numbers (default: the source's)")
    add("-q", "--quantize", action="store_true", help="pack the decoder's weights for MLX")
    add("--q-bits", type=int, choices=(4, 8), default=4, help="bits of a packed weight (default: %(default)s)")
    add("--q-group-size", type=int, choices=(32, 64, 128), default=64, help="weights that share a scale")
    add("--with-sst", action="store_true", help="add freshly initialised SST parameters, for training")
    add("--revision", help="branch, tag or commit of a Hub id")
    add("--decoder-revision", help="branch, tag or commit of --decoder")
    add("--verify", action="store_true", help="re-read the output and compare it with the source")
    add("--overwrite", action="store_true", help="replace a checkpoint that has the output's name")
    add("--upload-repo", metavar="OWNER/NAME", help="upload the output to the Hub")
    return made


def report(plan: Plan, folder: Path, out: Path) -> None:
    """What was made of which commit, and every tensor of the source that was left out."""
    parts = [plan.config.layout, plan.config.dtype]
    if plan.config.quantization:
        parts.append(f"{plan.config.quantization['bits']} bits")
    print(f"{plan.family}: {len(plan.recipes)} tensors, {format_bytes(plan.size)} ({', '.join(parts)}) in {out}")
    if folder.parent.name == "snapshots":
        print(f"from commit {folder.name}; name it with --revision to get the same again")
    for name, reason in plan.unused:
        print(f"not used: {name} ({reason})")
    if plan.tokenizer is None:
        print("The source has no tokenizer; put its tokenizer.json into the output before asking.", file=sys.stderr)
    strange = [name for name, reason in plan.unused if reason == NO_REASON]
    if strange:
        print(f"{len(strange)} tensors are no part of a known {plan.family}, {strange[0]} first.", file=sys.stderr)


def upload(out: Path, repo: str) -> None:
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=str(out), repo_id=repo)
    except (
        HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutputError(f"{out} is complete but was not uploaded to {repo} ({reason}); try hf upload.") from None


def run(arguments: argparse.Namespace) -> None:
    packing = Packing(arguments.q_group_size, arguments.q_bits) if arguments.quantize else None
    layout = arguments.to or ("mlx" if packing else "torch")
    options = Options(layout, arguments.dtype, packing, arguments.with_sst)
    out = Path(arguments.mlx_path).expanduser()
    check_output(out, [], arguments.overwrite)  # before a download of hours
    folder = fetch(arguments.hf_path, arguments.revision)
    decoder = fetch(arguments.decoder, arguments.decoder_revision) if arguments.decoder else None
    check_output(out, [folder] + ([decoder] if decoder else []), arguments.overwrite)
    plan = make_plan(folder, decoder, options)
    verify = None
    if arguments.verify:
        from converters.verify import Verifier

        verify = Verifier(plan, folder, decoder)
    convert(plan, options, out, verify)
    report(plan, folder, out)
    for line in verify.lines if verify else []:
        print(f"verified: {line}")
    if arguments.upload_repo:
        upload(out, arguments.upload_repo)
        print(f"uploaded to {arguments.upload_repo}")


def main(words: list[str] | None = None) -> int:
    try:
        run(parser().parse_args(words))
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; run the same command again, it continues.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
