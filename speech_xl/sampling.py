"""How the next token of an answer is chosen: the most probable one, or one drawn by its probability.

Greedy is the default, and nothing is ever drawn unless a caller asks for it. A seed makes a drawn answer come again.
Drawing happens here, in plain numpy, so that both backends draw alike; they give logits and know no temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from speech_xl.errors import QuestionError

Choose = Callable[[np.ndarray], int]  # (V,) float32 logits -> a token; called once a step, in order
HOTTEST = 2.0  # as in OpenAI's API


@dataclass(frozen=True)
class Sampling:
    """QuestionError for a temperature outside 0 to HOTTEST or a top_p outside 0 to 1.

    Attributes: `temperature` divides the logits, 0 is greedy; `top_p`: only the most probable tokens are drawn from, as
    many as have this probability together (nucleus sampling, arXiv 1904.09751); `seed`, any whole number, or None
    for another answer each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= HOTTEST:
            raise QuestionError(f"The temperature must be between 0 and {HOTTEST:g}; 0 is the most probable answer.")
        if not 0 <= self.top_p <= 1:
            raise QuestionError("top_p must be between 0 and 1; 1 leaves every word possible.")

    def chooser(self) -> Choose | None:
        """For one answer; None where the most probable token is taken, which a backend does by itself."""
        if self.temperature == 0 or self.top_p == 0:
            return None
        generator = np.random.default_rng(None if self.seed is None else self.seed % 2**64)
        return lambda logits: self._draw(logits, generator.random())

    def _draw(self, logits: np.ndarray, uniform: float) -> int:
        """The token at `uniform`, a number in [0, 1), of the probabilities laid end to end."""
        scaled = logits.astype(np.float64)
        scaled = (scaled - scaled.max()) / self.temperature  # the largest is 0: nothing overflows
        weights = np.exp(scaled)
        tokens = np.arange(len(weights))
        if self.top_p < 1:
            tokens = np.argsort(-weights, kind="stable")
            mass = weights[tokens].cumsum()
            tokens = tokens[: 1 + int(np.searchsorted(mass, self.top_p * mass[-1]))]
        mass = weights[tokens].cumsum()
        return int(tokens[np.searchsorted(mass, uniform * mass[-1], side="right")])


GREEDY = Sampling()
