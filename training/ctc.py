"""Alignment by connectionist temporal classification whose classes are the decoder's own token embeddings.

CTC (Graves et al. 2006) needs no times: speech tokens learn to be the embeddings of the words said, in order, so that
they come out where the decoder already understands them. The logit of a token is its embedding's nearness to the
speech token; blank, what is said between words, has a weight of its own. A softmax over a whole vocabulary costs
more than the network: a step takes the tokens that it says and some drawn at random.

Letters: B recordings, N speech tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speech_xl.config import ModelConfig
from speech_xl.prompt import Prompt
from speech_xl.schedule import Ratio
from training.packing import passes_of
from training.recipe import Stage
from training.samples import Sample
from training.speech import Speech, join_speech
from training.sums import Sums

GROUP = ("ctc", "raw")  # where figures are counted


class CTCHead(nn.Module):
    """Log-probabilities of blank (class 0) and of some tokens, from speech tokens and the tokens' embeddings."""

    def __init__(self, embeddings: torch.Tensor):
        super().__init__()
        self.blank = nn.Linear(embeddings.shape[1], 1)
        nn.init.zeros_(self.blank.weight)
        nn.init.zeros_(self.blank.bias)
        # Two embeddings are 2 * spread apart on average; as the logit counts nearness in units of spread / sqrt(D),
        # a speech token that is a word's embedding is sure of the word.
        self.register_buffer("spread", (embeddings - embeddings.mean(0)).square().sum(1).mean().detach())

    def forward(self, speech: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """speech (B, N, D), embeddings (C, D) -> (B, N, 1 + C) float32."""
        speech, embeddings = speech.float(), embeddings.float()
        nearness = speech @ embeddings.T - embeddings.square().sum(1) / 2
        logits = torch.cat([self.blank(speech), nearness * (speech.shape[-1] ** 0.5 / self.spread)], dim=-1)
        return F.log_softmax(logits, dim=-1)


@dataclass(frozen=True)
class CTCBatch:
    """Some recordings with their transcripts as classes."""

    speech: Speech
    lengths: np.ndarray  # (B,) int64: speech tokens of each recording
    classes: np.ndarray  # (C,) int64: the token of each class but blank
    targets: np.ndarray  # (sum of target_lengths,) int64: classes from 1
    target_lengths: np.ndarray  # (B,) int64
    speech_tokens: int

    @property
    def ssts(self) -> int:
        """None: the decoder does not run."""
        return 0


class CTCBatcher:
    """Makes passes of transcribed recordings, and their losses."""

    ratios: tuple[Ratio, ...] = (None,)

    def __init__(self, prompt: Prompt, config: ModelConfig, stage: Stage, seed: int):
        self._prompt, self._config, self._stage, self._seed = prompt, config, stage, seed

    def shared(self, samples: Sequence[Sample], numbers: Sequence[int], step: int) -> np.ndarray:
        """(C,) int64: the classes of a step, of all its recordings: whoever hears which, their losses are those of one pass."""
        drawn = np.random.default_rng([self._seed, step, int(numbers[0])])
        others = drawn.integers(0, self._config.decoder.vocab_size, self._stage.ctc_classes)
        return np.unique(np.concatenate([*map(self._ids, samples), others]))

    def training(
        self, samples: Sequence[Sample], numbers: Sequence[int], step: int, progress: float, shared: np.ndarray
    ) -> list[CTCBatch]:
        """The passes of these recordings, which are some of those that `shared` was made of."""
        made = []
        for part in passes_of([sample.tokens for sample in samples], self._stage):
            seeds = [(self._seed, step, int(numbers[i])) for i in part]
            own = [samples[i] for i in part]
            made.append(self._join(own, join_speech(own, self._config, self._stage.augment, seeds), shared))
        return made

    def validation(
        self, samples: Sequence[Sample], numbers: Sequence[int], ratio: Ratio, shared: np.ndarray
    ) -> CTCBatch:
        """Recordings as they are; `ratio` means nothing here."""
        return self._join(samples, join_speech(samples, self._config), shared)

    def _join(self, samples: Sequence[Sample], speech: Speech, classes: np.ndarray) -> CTCBatch:
        said = [self._ids(sample) for sample in samples]
        lengths = np.array([s.tokens for s in samples], np.int64)
        targets = np.searchsorted(classes, np.concatenate(said)) + 1
        return CTCBatch(
            speech, lengths, classes, targets, np.array([len(s) for s in said], np.int64), int(lengths.sum())
        )

    def _ids(self, sample: Sample) -> np.ndarray:
        return np.concatenate([self._prompt.word_ids(word)[0] for word in sample.source.text.split()]).astype(np.int64)

    def losses(self, network: nn.Module, batch: CTCBatch, device: torch.device) -> tuple[torch.Tensor, Sums]:
        """(B,) float32: each recording's loss, summed over its tokens; the figures count a token as right if the best
        path has it.
        """
        rows = torch.from_numpy(batch.speech.rows).to(device)
        windows = batch.speech.windows and tuple(torch.from_numpy(a).to(device) for a in batch.speech.windows)
        heard = network(
            rows, windows, classes=torch.from_numpy(batch.classes).to(device), lengths=batch.lengths.tolist()
        )
        lengths, wanted = torch.from_numpy(batch.lengths), torch.from_numpy(batch.target_lengths)
        losses = F.ctc_loss(
            heard.transpose(0, 1),
            torch.from_numpy(batch.targets).to(device),
            lengths,
            wanted,
            reduction="none",
            zero_infinity=True,
        )
        right = self._right(heard.detach().argmax(-1).cpu().numpy(), batch)
        return losses, {GROUP: np.array([float(losses.detach().sum()), right, len(batch.targets)])}

    def _right(self, paths: np.ndarray, batch: CTCBatch) -> float:
        """Tokens of the transcripts less the errors of the best paths: repeats merged, blanks left out."""
        said, wanted = [], []
        for path, length, target in zip(
            paths, batch.lengths, np.split(batch.targets, np.cumsum(batch.target_lengths)[:-1]), strict=True
        ):
            best = path[:length]
            kept = best[(best > 0) & np.diff(best, prepend=0).astype(bool)]
            said.append(" ".join(map(str, kept)))
            wanted.append(" ".join(map(str, target)))
        figures = jiwer.process_words(wanted, said)
        return float(len(batch.targets) - figures.substitutions - figures.deletions - figures.insertions)
