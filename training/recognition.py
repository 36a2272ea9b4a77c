"""A recogniser trained on transcribed windows: its text decoder learns which words stand in what the encoder hears.

The encoder stays as it is and its outputs are kept on disk, so a step costs the text decoder alone. The loss is the
cross-entropy of the transcript's tokens and of the token that ends it, each behind the right ones before it, as Whisper
was trained (arXiv 2212.04356, section 2.2). A share of the windows is read behind the words of the line before them, as
windows of a recording are when it is heard. It knows token ids and encoder outputs, no audio.

Letters: B windows, S encoder positions, R rows of text, A answer rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from speech_xl.config import ModelConfig, RecognizerConfig
from speech_xl.prompt import Prompt
from speech_xl.schedule import Ratio
from speech_xl.word_reader import prompt_tokens
from training.data import DataError, Recording
from training.packing import passes_of
from training.recipe import Stage
from training.samples import Sample
from training.sums import Sums

GROUP = ("recognition", "raw")  # where figures are counted


@dataclass(frozen=True)
class WindowSample(Sample):
    """One window and the text that is said in it: `words` (N,) int32 are the recogniser's tokens of it, `before` those of
    the line before.
    """

    before: tuple[int, ...] = ()


@dataclass(frozen=True)
class RecognitionBatch:
    """Some windows with the text to read from them."""

    heard: np.ndarray  # (B, S, D) float32
    ids: np.ndarray  # (B, R) int64
    answer_rows: np.ndarray  # (A, 2) int64: window, row
    targets: np.ndarray  # (A,) int64
    speech_tokens: int

    @property
    def ssts(self) -> int:
        """None: the decoder does not run."""
        return 0


def window_sample(
    recording: Recording, before: Recording | None, features: Path, tokenizer: Tokenizer, config: RecognizerConfig
) -> WindowSample:
    """A window whose encoder outputs lie in `features`, `before` the line before it; DataError names a line whose text has
    no room in the recogniser.
    """
    ids = text_ids(recording, tokenizer)
    if len(config.start_ids) + len(ids) > config.max_target_positions:
        raise DataError(
            f"{recording.where}: the text has {len(ids)} tokens, more than the recogniser writes of one window; "
            "cut the recording with start and end."
        )
    prompt = () if before is None else tuple(text_ids(before, tokenizer)[-prompt_tokens(config) :])
    return WindowSample(len(ids), recording, words=np.array(ids, np.int32), features=features, before=prompt)


def text_ids(recording: Recording, tokenizer: Tokenizer) -> list[int]:
    """The recogniser's tokens of what is said."""
    return tokenizer.encode(" " + recording.text.strip(), add_special_tokens=False).ids


class RecognitionBatcher:
    """Makes passes of transcribed windows, and their losses."""

    ratios: tuple[Ratio, ...] = (None,)

    def __init__(self, prompt: Prompt, config: ModelConfig, stage: Stage, seed: int):
        self._config, self._stage, self._seed = config.recognizer, stage, seed

    def shared(self, samples: Sequence[WindowSample], numbers: Sequence[int], step: int) -> None:
        """What all passes of a step have in common: here nothing, see CTCBatcher."""

    def training(
        self, samples: Sequence[WindowSample], numbers: Sequence[int], step: int, progress: float, shared: None
    ) -> list[RecognitionBatch]:
        """The passes of a training step's windows; a share of them has a prompt, by chance."""
        drawn = [np.random.default_rng([self._seed, step, n]).random() < self._stage.prompted for n in numbers]
        return [
            self._collate([samples[i] for i in part], [drawn[i] for i in part])
            for part in passes_of([sample.tokens for sample in samples], self._stage)
        ]

    def validation(
        self, samples: Sequence[WindowSample], numbers: Sequence[int], ratio: Ratio, shared: None
    ) -> RecognitionBatch:
        """Windows, every second one with a prompt; `ratio` means nothing here."""
        return self._collate(samples, [number % 2 == 1 for number in numbers])

    def _collate(self, samples: Sequence[WindowSample], prompted: Sequence[bool]) -> RecognitionBatch:
        config, texts, answer_rows, targets = self._config, [], [], []
        for i, (sample, is_prompted) in enumerate(zip(samples, prompted, strict=True)):
            words = sample.words.tolist()
            room = config.max_target_positions - len(config.start_ids) - len(words) - 1
            before = list(sample.before[-room:]) if room > 0 else []
            has_prompt = is_prompted and before and config.previous_id is not None
            start = [*([config.previous_id, *before] if has_prompt else []), *config.start_ids]
            texts.append([*start, *words])
            answer_rows += [(i, len(start) - 1 + j) for j in range(len(words) + 1)]
            targets += [*words, config.end_id]
        ids = np.full((len(samples), max(map(len, texts))), config.end_id, np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        heard = np.stack([np.load(sample.features) for sample in samples]).astype(np.float32)
        return RecognitionBatch(
            heard, ids, np.array(answer_rows, np.int64), np.array(targets, np.int64), sum(s.tokens for s in samples)
        )

    def losses(self, network: nn.Module, batch: RecognitionBatch, device: torch.device) -> tuple[torch.Tensor, Sums]:
        """(A,) float32: cross-entropy of each token, and how many are the likeliest."""
        heard, ids, targets = (torch.from_numpy(a).to(device) for a in (batch.heard, batch.ids, batch.targets))
        window, row = torch.from_numpy(batch.answer_rows).to(device).T
        logits = network(heard, read=ids)[window, row]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        right = float((logits.argmax(-1) == targets).sum())
        return losses, {GROUP: np.array([float(losses.detach().sum()), right, len(targets)])}
