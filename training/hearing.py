"""From a recording to a sample, by what the checkpoint hears with and whether a stage leaves that as it is.

It chooses between the ways; how each works is the business of features.py, recognition.py and sound.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from tokenizers import Tokenizer

from speech_xl.config import ModelConfig
from speech_xl.prompt import Prompt
from speech_xl.recognition import load_recognizer_tokenizer
from torch_backend.encoder import SpeechTower
from training.data import DataError, Recording
from training.features import FeatureCache, encode, encode_window, front_end_hash, recognizer_of
from training.network import load_tower
from training.recipe import RecipeError, Stage
from training.recognition import window_sample
from training.samples import Sample, as_npy
from training.sound import read_samples


class Hearing:
    """Makes the samples of one stage. What it hears is kept in a folder, by all processes, for all stages."""

    def __init__(
        self, stage: Stage, source: Path, config: ModelConfig, prompt: Prompt, folder: Path, accelerator: Accelerator
    ):
        self._source, self._config, self._prompt = source, config, prompt
        self._folder, self._accelerator = folder, accelerator
        self._has_recognizer = config.recognizer is not None
        self._reads_windows = stage.kind == "recognition"
        self._hears_anew = stage.trains_encoder or bool(stage.augment)
        self._ids_of: dict[str, list[int]] = {}
        if self._has_recognizer and stage.augment and not self._reads_windows:
            raise RecipeError(f"Stage {stage.name!r} has augment, but a recogniser's words are kept; leave it out.")

    def sample(self, recording: Recording, tokens: int | None, before: Recording | None) -> Sample:
        """A recording as the stage hears it, for the first time if need be; see samples.Make.

        DataError names a line that this checkpoint cannot be trained on.
        """
        if self._reads_windows:
            return self._window(recording, before)
        if self._has_recognizer:
            if recording.heard is None:
                path = self._cache.entry(recording, ".txt", self._heard)
                recording = replace(recording, heard=path.read_text(encoding="utf-8"))
            ids = self._ids(recording.heard)
            return Sample(len(ids), recording, words=np.array(ids, np.int32))
        if recording.heard is not None:
            raise DataError(f"{recording.where}: the checkpoint has no recogniser to hear words with; give audio.")
        if self._hears_anew:
            return Sample(tokens or self._config.tokens_for(len(read_samples(recording))), recording)
        path = self._cache.entry(recording, ".npy", lambda samples: as_npy(encode(self._tower, samples)))
        rows = len(np.load(path, mmap_mode="r"))
        return Sample(rows // self._config.adapter.stack, recording, features=path)

    def rest(self) -> None:
        """Everything has been heard: forget the models that heard it."""
        for name in ("_tower", "_recognize"):
            self.__dict__.pop(name, None)

    def _window(self, recording: Recording, before: Recording | None) -> Sample:
        """A recording of one encoder window, for a recogniser to be trained on."""
        if recording.audio is None:
            raise DataError(f"{recording.where}: a recogniser is trained on sound; give audio and its text.")

        def make(samples: np.ndarray) -> bytes:
            with self._accelerator.autocast():
                return as_npy(encode_window(self._tower, samples))

        path = self._cache.entry(recording, ".window.npy", make)
        return window_sample(recording, before, path, self._tokenizer, self._config.recognizer)

    def _heard(self, samples: np.ndarray) -> bytes:
        return self._recognize(samples)  # loaded when something is heard for the first time

    def _ids(self, heard: str) -> list[int]:
        """Each word is tokenized alone, behind a blank, as when it is heard."""
        ids: list[int] = []
        for word in heard.split():
            if word not in self._ids_of:
                self._ids_of[word] = self._prompt.word_ids(word)[0]
            ids += self._ids_of[word]
        return ids

    @cached_property
    def _cache(self) -> FeatureCache:
        return FeatureCache(self._folder, front_end_hash(self._source, self._config, encoder_only=self._reads_windows))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_recognizer_tokenizer(self._source, self._config.recognizer.vocab_size)

    @cached_property
    def _tower(self) -> SpeechTower:
        return load_tower(self._source, self._config).to(self._accelerator.device).eval()

    @cached_property
    def _recognize(self) -> Callable[[np.ndarray], bytes]:
        return recognizer_of(self._source)
