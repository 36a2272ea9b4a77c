"""Pseudo-speech: what a well-trained encoder would say of an order, drawn without any audio.

Alignment ties speech tokens to the decoder's own token embeddings (see alignment.py), so a clip can be
imitated: mostly blank embeddings, one or two frames of each word's, confusions, deletions and noise. The
decoder learns to transcribe, retrieve and summarize on these before the encoder has converged.
"""

from __future__ import annotations

import random

import numpy as np
from tokenizers import Tokenizer

from torch_backend.training import grammar
from torch_backend.training.desk import TokenClip, nearest_word
from torch_backend.training.text import spoken_ids


class PseudoPool:
    """A ClipPool without audio. `embeddings` (vocab_size, D) float32, `blank` the blank token's id."""

    def __init__(self, tokenizer: Tokenizer, embeddings: np.ndarray, blank: int):
        self.tokenizer = tokenizer
        self.embeddings = embeddings
        self.blank_id = blank
        self.confusable = sorted(set(spoken_ids(tokenizer, grammar.SPOKEN_WORDS)))
        self.digit_tokens = spoken_ids(tokenizer, grammar.DIGIT_WORDS)

    def _frames(self, rng: random.Random, ids: list[int], pace: float, noise: float, among: list[int]) -> np.ndarray:
        """(N, D): each id as one or two frames among blanks, `pace` frames of blank per token on average."""
        rows: list[int] = []
        for token in ids:
            rows += [-1] * min(6, int(rng.expovariate(1 / pace)))
            rows += [token] * (2 if rng.random() < 0.3 else 1)
        out = self.silence(rng, len(rows)).astype(np.float32)
        for at, token in enumerate(rows):
            if token < 0 or rng.random() < 0.01:
                continue
            sure = 1 - 0.6 * rng.random() ** 3
            other = rng.choice(among) if rng.random() < 0.8 else self.blank_id
            out[at] += (
                sure * self.embeddings[token] + (1 - sure) * self.embeddings[other] - self.embeddings[self.blank_id]
            )
        generator = np.random.default_rng(rng.getrandbits(32))
        width = out.shape[1]
        return out + generator.standard_normal(out.shape, np.float32) * (noise / width**0.5)

    def silence(self, rng: random.Random, tokens: int) -> np.ndarray:
        generator = np.random.default_rng(rng.getrandbits(32))
        noise = generator.standard_normal((tokens, self.embeddings.shape[1]), np.float32)
        return self.embeddings[self.blank_id] + noise * (0.2 / self.embeddings.shape[1] ** 0.5)

    def said(self, vectors: np.ndarray) -> np.ndarray:
        return nearest_word(vectors, self.embeddings, self.blank_id)

    def number(self, rng: random.Random, number: int) -> np.ndarray:
        ids = [self.digit_tokens[d] for d in divmod(number, 10)]
        return self._frames(rng, ids, 1.5, rng.uniform(0.1, 0.6), self.digit_tokens)

    def order(self, rng: random.Random) -> TokenClip:
        slots = grammar.sample_slots(rng)
        words = grammar.words_of(slots, rng)
        ids = spoken_ids(self.tokenizer, words)
        vectors = self._frames(rng, ids, rng.uniform(0.5, 3.0), rng.uniform(0.1, 0.6), self.confusable)
        return TokenClip(vectors, slots, tuple(words))
