"""Runs the stages of a recipe one after another and hands weights from stage to stage.

It knows which stage needs which data; how a stage trains is alignment.py's and answering.py's business.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import soundfile as sf
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from speech_xl.config import save_config
from torch_backend.model import SpeechXL
from torch_backend.training import grammar
from torch_backend.training.alignment import AlignmentStage, Ruler, SpeechData, train_alignment
from torch_backend.training.answering import AnsweringStage, train_answering
from torch_backend.training.corpus import load_human, load_tts, split_human, synthesize
from torch_backend.training.desk import ClipPool
from torch_backend.training.encoded import EncodingPlan, build_pool, load_pool, save_pool
from torch_backend.training.initialise import copy_into_sst, initialise
from torch_backend.training.pseudo import PseudoPool
from torch_backend.training.recipe import Recipe, RecipeError
from torch_backend.training.state import Run
from torch_backend.training.text import BLANK, END, build_tokenizer

# Unseen people as they are: no augmentation.
VALIDATION_PLAN = EncodingPlan(1, 0, human_numbers=200, synthetic_numbers=0, strength=0.0)


def tokenizer_corpus(seed: int) -> list[str]:
    """Everything the order desk says and is asked, for the tokenizer's training."""
    rng = random.Random(seed)
    orders = [" ".join(grammar.words_of(grammar.sample_slots(rng), rng)) for _ in range(2000)]
    templates = [t for group in (*grammar.QUESTIONS.values(), grammar.TRANSCRIBE) for t in group]
    asked = [t.format(n=n) for t in templates for n in range(100)]
    return orders + asked + [grammar.NOT_MENTIONED, " ".join(grammar.SPOKEN_WORDS)] * 200


class Runner:
    def __init__(self, recipe: Recipe, runs: Path, cache: Path, human_data: Path | None):
        self.recipe = recipe
        self.runs = runs
        self.cache = cache
        self.human_data = human_data
        self._heard_by = ""  # the last alignment stage: what it makes of clips is kept in its folder

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return build_tokenizer(tokenizer_corpus(self.recipe.seed), self.recipe.vocab_size)

    @cached_property
    def model(self) -> SpeechXL:
        model = SpeechXL(self.recipe.model)
        initialise(model, self.recipe.seed)
        return model

    def run(self, stage: AlignmentStage | AnsweringStage) -> None:
        """Train one stage unless it is done; its weights end up in `self.model` either way."""
        run = Run(self.runs / stage.name, self.recipe.save_every_seconds)
        part = self.model.decoder
        if isinstance(stage, AlignmentStage):
            part, self._heard_by = self.model.speech, stage.name
        if not run.done_path.exists():
            self._train(stage, run)
        part.load_state_dict(torch.load(run.done_path, weights_only=True))

    def _train(self, stage: AlignmentStage | AnsweringStage, run: Run) -> None:
        if isinstance(stage, AnsweringStage):
            if stage.initialise_sst:
                copy_into_sst(self.model.decoder, self.tokenizer.token_to_id(END))
            interval = self.recipe.model.sst.interval
            pool, validation = self._pools(stage)
            layers = self.recipe.model.evidence_layers
            train_answering(stage, self.model.decoder, pool, self.tokenizer, interval, run, layers, validation)
        else:
            embeddings = self.model.decoder.embed_tokens.weight
            data, others = self.speech(trim=True)
            validation = (others.human_orders, others.human_digits[::5])
            train_alignment(stage, self.model.speech, embeddings, self.tokenizer, data, validation, run)

    def _pools(self, stage: AnsweringStage) -> tuple[ClipPool, ClipPool | None]:
        """Clips to train on, and those of unseen people where there are any."""
        embeddings = self.model.decoder.embed_tokens.weight.detach()
        if stage.clips == "pseudo":
            return PseudoPool(self.tokenizer, embeddings.numpy(), self.tokenizer.token_to_id(BLANK)), None
        if stage.clips not in self.recipe.encodings:
            raise RecipeError(
                f"The recipe's stage {stage.name!r} wants clips {stage.clips!r}, which no encoding makes."
            )
        encoding = self.recipe.encodings[stage.clips]
        pools: list[ClipPool] = []
        for which, plan in enumerate((encoding, replace(VALIDATION_PLAN, trim=encoding.trim))):
            name = ("training", "validation")[which]
            path = self.runs / self._heard_by / f"{stage.clips}-{name}.safetensors"
            if not path.exists():
                data = self.speech(encoding.trim)[which]
                if not data.human_orders and not data.synthetic_orders:
                    return pools[0], None
                ruler = Ruler(self.tokenizer, embeddings)
                tower = self.model.speech.eval()
                save_pool(build_pool(tower, ruler, self.tokenizer, data, plan, self.recipe.seed), path)
            pool = load_pool(path, stage.human if name == "training" else 1.0)
            pool.embeddings, pool.blank_id = embeddings.numpy(), self.tokenizer.token_to_id(BLANK)
            pools.append(pool)
        return pools[0], pools[1]

    def speech(self, trim: bool) -> tuple[SpeechData, SpeechData]:
        """-> what may be trained on, and people who are never trained on; human clips `trim`med or as recorded."""
        synthesize(self.cache, **self.recipe.synthetic)
        orders, digits = load_tts(self.cache)
        if self.human_data is None:
            return SpeechData(orders, digits, [], []), SpeechData([], [], [], [])
        kept_orders, held_orders, kept_digits, held_digits = split_human(
            *load_human(self.human_data, trim), self.recipe.validation_voice
        )
        noise_path = self.human_data / "kitchen.flac"
        noise = sf.read(noise_path, dtype="float32")[0] if noise_path.exists() else None
        return SpeechData(orders, digits, kept_orders, kept_digits, noise), SpeechData([], [], held_orders, held_digits)

    def export(self, folder: Path) -> None:
        """Write a checkpoint (float16 safetensors, tokenizer, config) of the stages that have run."""
        temporary = folder.with_name(folder.name + ".partial")
        temporary.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.half().contiguous() for name, t in self.model.state_dict().items()}
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        save_config(replace(self.recipe.model, dtype="float16"), temporary)
        self.tokenizer.save(str(temporary / "tokenizer.json"))
        folder.mkdir(exist_ok=True)
        for path in temporary.iterdir():  # one by one: a model card beside them stays
            os.replace(path, folder / path.name)
        temporary.rmdir()
