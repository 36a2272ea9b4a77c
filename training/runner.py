"""Runs a recipe's stages one after another; each takes a checkpoint folder and leaves one.

It knows which stage needs what, and where it is kept; how a stage trains is loop.py's business.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs
from tqdm import tqdm

from speech_xl.checkpoints import fingerprint
from speech_xl.config import ModelConfig, SSTConfig
from speech_xl.config_file import load_config
from speech_xl.errors import CheckpointError
from speech_xl.plain_text import one_line
from speech_xl.prompt import Prompt
from training.adapter_files import WEIGHTS, factors_of, read_adapter, save_adapter, start_from
from training.batch import Batcher
from training.ctc import CTCBatcher
from training.data import DataError, Place, Recording, hash_files, scan_recordings, sound_hash
from training.export import changed_tensors, export, publish
from training.hearing import Hearing
from training.loop import Loop
from training.lora import adapters_of
from training.network import choose_trained, load_network
from training.recipe import Recipe, RecipeError, Stage, settings_of
from training.recognition import RecognitionBatcher
from training.samples import Samples, index_samples
from training.sharding import sharding_settings
from training.state import StageFolder, stage_fingerprint

T = TypeVar("T")


class Runner:
    """Runs a recipe's stages one after another and keeps each one's result."""

    def __init__(self, recipe: Recipe, data: Sequence[Path], validation: Path | None, output: Path):
        self.recipe, self.data, self.output = recipe, list(data), output
        self.validation = [validation] if validation else []
        self.accelerator = Accelerator(
            mixed_precision="bf16" if multiplies_bfloat16(recipe.precision) else "no",
            cpu=not torch.cuda.is_available(),
            # A step whose intervals are all raw leaves SST parameters without a gradient.
            # While the first process hears all sound for the first time, the others wait.
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=timedelta(hours=12)),
            ],
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
            if (adapter := source.parent / "adapter").is_dir():
                publish(adapter, self.output / "adapter")
            else:  # none of an earlier run's
                shutil.rmtree(self.output / "adapter", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return True

    def _stage(self, stage: Stage, source: Path, sst: SSTConfig | None) -> Path | None:
        """The checkpoint that a stage makes of `source`; None if it was stopped before its end."""
        found = (
            recording for recording, _ in usable(self.data, stage)
        )  # every line is looked at before one is trained on
        sounds = list(dict.fromkeys(sound_hash(recording) for recording in found if recording.audio is not None))
        has_held = sum(1 for _ in usable(self.validation, stage, is_needed=False)) > 0
        facts = {
            "stage": settings_of(stage),
            "seed": self.recipe.seed,
            "sst": sst,
            "data": hash_files(self.data),
            "model": fingerprint(source),
        }
        if self.accelerator.mixed_precision != "no":
            facts["precision"] = self.accelerator.mixed_precision
        if sounds:
            facts["sounds"] = sounds
        if stage.loss == "ctc" or stage.augment:
            facts["drawn"] = "for each recording"  # whatever process hears it
        if stage.lora is not None and stage.lora.start is not None:
            read_adapter(Path(stage.lora.start))  # it can be read, or that is said now
            facts["start"] = hash_files([Path(stage.lora.start) / WEIGHTS])
        folder = StageFolder(
            self.output / "stages" / f"{stage.name}-{stage_fingerprint(facts)[:12]}", self.recipe.save_minutes
        )
        if folder.is_done:
            if self.accelerator.is_main_process:
                folder.drop_state()
            self._say(f"Stage {stage.name} is done already: {folder.model}")
            return folder.model
        config = load_config(source)
        if stage.kind == "recognition" and config.recognizer is None:
            raise RecipeError(f"Stage {stage.name!r} trains a recogniser, and {source} has none; leave the stage out.")
        prompt = Prompt.load(source, config)
        if prompt.end_id is None:
            raise CheckpointError(
                f"{source} names no token that ends an answer; add prompt.end_tokens to its config.json."
            )
        is_main = self.accelerator.is_main_process
        is_empty = sharding_settings() is not None and not is_main
        network, config = load_network(source, config, sst, prompt.end_id, stage.kind == "recognition", is_empty)
        check_ratios(stage, config.sst, source)
        trained = choose_trained(network, stage, self.recipe.seed)
        if stage.lora is not None and stage.lora.start is not None and not is_empty:
            start_from(Path(stage.lora.start), stage.lora, adapters_of(network))
        samples, left_out, held = self._hear(stage, source, config, prompt, self.validation if has_held else [])
        count = sum(p.numel() for p in trained.values())
        self._say(
            f"Stage {stage.name}: {len(samples)} recordings"
            + (f" ({left_out} longer than {stage.max_tokens} tokens, or silent, left out)" if left_out else "")
            + f", {len(held) if held else 0} to validate, {count:,} parameters in {len(trained)} tensors, in {folder.path}"
        )
        make = CTCBatcher if stage.loss == "ctc" else RecognitionBatcher if stage.kind == "recognition" else Batcher
        batcher = make(prompt, config, stage, self.recipe.seed)
        loop = Loop(network, trained, stage, batcher, self.recipe.seed, folder, self.accelerator)
        finished = loop.run(samples, held)
        folder.close()
        if not finished:
            return None
        changed = changed_tensors(
            self.accelerator.unwrap_model(loop.network), set(trained), getattr(torch, config.dtype), is_main
        )
        adapters = adapters_of(self.accelerator.unwrap_model(loop.network))
        factors = factors_of(adapters, is_main)
        if is_main:
            if factors:
                save_adapter(factors, stage.lora, str(source), folder.path / "adapter")
            if config.sst is not None and any("sst_" in name for name in trained):
                config = replace(config, sst=replace(config.sst, trained=True))
            export(changed, config, source, folder.model)
            folder.finish(facts | {"steps": loop.step, "seconds": round(loop.elapsed)})
        self.accelerator.wait_for_everyone()
        return folder.model

    def _hear(
        self, stage: Stage, source: Path, config: ModelConfig, prompt: Prompt, validation: list[Path]
    ) -> tuple[Samples, int, Samples | None]:
        """The recordings to train on, how many were left out, and those to validate with."""
        hearing = Hearing(stage, source, config, prompt, self.output / "features", self.accelerator)
        with self.accelerator.main_process_first():  # the others find everything there
            found = [
                index_samples(
                    paths,
                    self._shown(usable(paths, stage)),
                    hearing.sample,
                    stage.max_tokens,
                    stage.kind == "recognition",
                )
                for paths in (self.data, validation)
                if paths
            ]
        hearing.rest()
        return (*found[0], found[1][0] if len(found) > 1 else None)

    def _shown(self, recordings: Iterator[T]) -> Iterator[T]:
        is_quiet = not self.accelerator.is_main_process
        return tqdm(recordings, unit="recording", desc="hearing", disable=is_quiet, delay=2, leave=False)

    def _say(self, sentence: str) -> None:
        self.accelerator.print(one_line(sentence), flush=True)


def multiplies_bfloat16(precision: str | None) -> bool:
    """Whether matrix products run in bfloat16: where they are faster, and on a CPU only if the recipe allows it."""
    if torch.cuda.is_available():
        return precision != "float32"
    fast = torch.cpu.get_capabilities()  # without such units torch is a hundred times slower than in float32
    return precision == "mixed" and bool(fast.get("avx512_bf16") or fast.get("amx_bf16"))


def usable(paths: Sequence[Path], stage: Stage, is_needed: bool = True) -> Iterator[tuple[Recording, Place]]:
    """The recordings that the stage can learn from: CTC and a recogniser need a transcript.

    DataError if there are none but they are needed. To validate with, they are not.
    """
    needs_text = stage.loss == "ctc" or stage.kind == "recognition"
    is_empty = True
    for recording, place in scan_recordings(paths):
        if recording.text is not None or not needs_text:
            is_empty = False
            yield recording, place
    if is_empty and is_needed:
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
