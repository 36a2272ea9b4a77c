"""Runs a recipe's stages one after another; each takes a checkpoint folder and leaves one.

It knows which stage needs what, and where it is kept; how a stage trains is loop.py's business.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from speech_xl.checkpoints import fingerprint
from speech_xl.config import SSTConfig
from speech_xl.config_file import load_config
from speech_xl.errors import CheckpointError
from speech_xl.prompt import Prompt
from training.batch import Batcher
from training.ctc import CTCBatcher
from training.data import DataError, Recording, hash_files, read_recordings, sound_hash
from training.hearing import Hearing
from training.loop import Loop
from training.network import choose_trained, export, load_network, replace_folder
from training.recipe import Recipe, RecipeError, Stage, settings_of
from training.recognition import RecognitionBatcher
from training.samples import check_length
from training.state import StageFolder, stage_fingerprint


class Runner:
    """Runs a recipe's stages one after another and keeps each one's result."""

    def __init__(self, recipe: Recipe, data: Sequence[Path], validation: Path | None, output: Path):
        self.recipe, self.data, self.output = recipe, list(data), output
        self.validation = [validation] if validation else []
        self.accelerator = Accelerator(
            mixed_precision="bf16" if multiplies_bfloat16(recipe.precision) else "no",
            cpu=not torch.cuda.is_available(),
            # A step whose intervals are all raw leaves SST parameters without a gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )

    def run(self, model: Path) -> bool:
        """Train every stage that is not done; `output`/model is the last one's. False: stopped, to be gone on with."""
        source = model
        for number, stage in enumerate(self.recipe.stages):
            folder = self._stage(stage, source, self.recipe.sst if number == 0 else None)
            if folder is None:
                return False
            source = folder
        if self.accelerator.is_main_process:
            publish(source, self.output / "model")
        self.accelerator.wait_for_everyone()
        return True

    def _stage(self, stage: Stage, source: Path, sst: SSTConfig | None) -> Path | None:
        """The checkpoint that a stage makes of `source`; None if it was stopped before its end."""
        recordings, held = (usable(read_recordings(paths), stage) for paths in (self.data, self.validation))
        facts = {
            "stage": settings_of(stage), "seed": self.recipe.seed, "sst": sst,
            "data": hash_files(self.data), "model": fingerprint(source),
        }  # fmt: skip
        if self.accelerator.mixed_precision != "no":
            facts["precision"] = self.accelerator.mixed_precision
        if sounds := dict.fromkeys(sound_hash(r) for r in recordings if r.audio is not None):
            facts["sounds"] = list(sounds)
        key = stage_fingerprint(facts)
        folder = StageFolder(self.output / "stages" / f"{stage.name}-{key[:12]}", self.recipe.save_minutes)
        if folder.is_done:
            self._say(f"Stage {stage.name} is done already: {folder.model}")
            return folder.model
        config = load_config(source)
        if stage.kind == "recognition" and config.recognizer is None:
            raise RecipeError(f"Stage {stage.name!r} trains a recogniser, and {source} has none; leave the stage out.")
        prompt = Prompt.load(source, config)
        if prompt.end_id is None:
            raise CheckpointError(f"{source} names no token that ends an answer; add prompt.end_tokens to its config.json.")
        network, config = load_network(source, config, sst, prompt.end_id, stage.kind == "recognition")
        check_ratios(stage, config.sst, source)
        trained = choose_trained(network, stage, self.recipe.seed)
        hear = Hearing(stage, source, config, prompt, network, self.output / "features", self.accelerator)
        samples, too_long = check_length(hear.samples(recordings), stage.max_tokens)
        held = check_length(hear.samples(held), stage.max_tokens)[0] if held else []
        count = sum(p.numel() for p in trained.values())
        self._say(
            f"Stage {stage.name}: {len(samples)} recordings"
            + (f" ({too_long} longer than {stage.max_tokens} tokens, or silent, left out)" if too_long else "")
            + f", {len(held)} to validate, {count:,} parameters in {len(trained)} tensors, in {folder.path}"
        )
        make = CTCBatcher if stage.loss == "ctc" else RecognitionBatcher if stage.kind == "recognition" else Batcher
        batcher = make(prompt, config, stage, self.recipe.seed)
        loop = Loop(network, trained, stage, batcher, self.recipe.seed, folder, self.accelerator)
        finished = loop.run(samples, held)
        folder.close()
        if not finished:
            return None
        if self.accelerator.is_main_process:
            if config.sst is not None and any("sst_" in name for name in trained):
                config = replace(config, sst=replace(config.sst, trained=True))
            export(self.accelerator.unwrap_model(loop.network), config, source, folder.model)
            folder.finish(facts | {"steps": loop.step, "seconds": round(loop.elapsed)})
        self.accelerator.wait_for_everyone()
        return folder.model

    def _say(self, sentence: str) -> None:
        self.accelerator.print(sentence, flush=True)


def multiplies_bfloat16(precision: str | None) -> bool:
    """Whether matrix products run in bfloat16: where they are faster, and on a CPU only if the recipe allows it."""
    if torch.cuda.is_available():
        return precision != "float32"
    fast = torch.cpu.get_capabilities()  # without such units torch is a hundred times slower than in float32
    return precision == "mixed" and bool(fast.get("avx512_bf16") or fast.get("amx_bf16"))


def usable(recordings: list[Recording], stage: Stage) -> list[Recording]:
    """Those that the stage can learn from: CTC and a recogniser need a transcript."""
    if (stage.loss != "ctc" and stage.kind != "recognition") or not recordings:
        return recordings
    if found := [r for r in recordings if r.text is not None]:
        return found
    raise DataError(f"Stage {stage.name!r} learns from transcripts, but no line has a text; add lines that have.")


def check_ratios(stage: Stage, sst: SSTConfig | None, source: Path) -> None:
    """RecipeError unless the checkpoint's SSTs have every ratio of the stage."""
    for ratio in stage.ratios:
        if ratio is not None and sst is None:
            raise RecipeError(
                f"Stage {stage.name!r} has ratio {ratio}, but {source} has no SSTs; give the recipe an sst."
            )
        if ratio is not None and ratio not in sst.ratios:
            known = ", ".join(map(str, sst.ratios))
            raise RecipeError(
                f"Stage {stage.name!r} has ratio {ratio}, but the SSTs have {known}; correct its lessons."
            )


def publish(source: Path, folder: Path) -> None:
    """Make `folder` the checkpoint `source`, by hard links where the disk has them."""
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, temporary / path.name)
        except OSError:
            shutil.copyfile(path, temporary / path.name)
    replace_folder(temporary, folder)
