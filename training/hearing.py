"""From recordings to samples, by what the checkpoint hears with and whether a stage leaves that as it is.

It chooses between the ways; how each works is the business of features.py and samples.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from speech_xl.config import ModelConfig
from speech_xl.prompt import Prompt
from speech_xl.recognition import load_recognizer_tokenizer
from training.data import DataError, Recording
from training.features import FeatureCache, encode, encode_window, front_end_hash, recognize
from training.network import Network
from training.recipe import RecipeError, Stage
from training.recognition import window_samples
from training.samples import Sample, as_npy, encoded_samples, heard_samples, sound_samples


class Hearing:
    """Makes the samples of one stage. What it hears is kept in `cache`, by all processes, for all stages."""

    def __init__(
        self, stage: Stage, source: Path, config: ModelConfig, prompt: Prompt, network: Network, cache: Path,
        accelerator: Accelerator,
    ):  # fmt: skip
        self._stage, self._source, self._config, self._prompt = stage, source, config, prompt
        self._network, self._cache, self._accelerator = network, cache, accelerator

    def samples(self, recordings: Sequence[Recording]) -> list[Sample]:
        """DataError names a line that this checkpoint cannot be trained on."""
        has_recognizer = self._config.recognizer is not None
        if self._stage.kind == "recognition":
            return self._windows(recordings)
        if has_recognizer and self._stage.augment:
            raise RecipeError(f"Stage {self._stage.name!r} has augment, but a recogniser's words are kept; leave it out.")
        if has_recognizer and all(r.heard is not None for r in recordings):
            return heard_samples(recordings, self._prompt)
        for recording in recordings:
            if recording.heard is not None and not has_recognizer:
                raise DataError(f"{recording.where}: the checkpoint has no recogniser to hear words with; give audio.")
        if not has_recognizer and (self._stage.trains_encoder or self._stage.augment):
            return sound_samples(recordings, self._config)
        cache = FeatureCache(self._cache, front_end_hash(self._source, self._config))
        is_quiet = not self._accelerator.is_main_process
        with self._accelerator.main_process_first():  # the others find everything there
            if has_recognizer:
                heard = recognize(list(recordings), self._source, self._config, cache, is_quiet)
                return heard_samples(heard, self._prompt)
            tower = self._network.speech.to(self._accelerator.device).eval()
            cache.fill(recordings, ".npy", lambda samples: as_npy(encode(tower, samples)), is_quiet)
        return encoded_samples(recordings, lambda r: cache.path(r, ".npy"), self._config.adapter.stack)

    def _windows(self, recordings: Sequence[Recording]) -> list[Sample]:
        """Recordings of one encoder window each, for a recogniser to be trained on."""
        if found := next((r for r in recordings if r.audio is None), None):
            raise DataError(f"{found.where}: a recogniser is trained on sound; give audio and its text.")
        cache = FeatureCache(self._cache, front_end_hash(self._source, self._config, encoder_only=True))
        tower = self._network.speech.to(self._accelerator.device).eval()

        def make(samples: np.ndarray) -> bytes:
            with self._accelerator.autocast():
                return as_npy(encode_window(tower, samples))

        with self._accelerator.main_process_first():
            cache.fill(recordings, ".window.npy", make, not self._accelerator.is_main_process)
        tokenizer = load_recognizer_tokenizer(self._source, self._config.recognizer.vocab_size)
        return window_samples(recordings, lambda r: cache.path(r, ".window.npy"), tokenizer, self._config.recognizer)
