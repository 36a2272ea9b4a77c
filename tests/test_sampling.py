"""How a token is chosen: greedy unless asked otherwise, by its probability else, and the same again with the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from speech_xl.conversation import Listening, ask
from speech_xl.errors import QuestionError
from speech_xl.model import SpeechModel
from speech_xl.sampling import GREEDY, HOTTEST, Sampling

LOGITS = np.log(np.array([0.1, 0.5, 0.0625, 0.3, 0.0375], np.float32))
logits = arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e4, 1e4, width=32))


def drawn(sampling: Sampling, times: int) -> np.ndarray:
    """How often each of LOGITS' tokens came."""
    choose = sampling.chooser()
    return np.bincount([choose(LOGITS) for _ in range(times)], minlength=len(LOGITS)) / times


def test_tokens_come_as_often_as_they_are_probable() -> None:
    wanted = np.exp(LOGITS)
    np.testing.assert_allclose(drawn(Sampling(1, seed=1), 4000), wanted, atol=0.03)
    hotter = wanted**0.5 / (wanted**0.5).sum()
    np.testing.assert_allclose(drawn(Sampling(2, seed=1), 4000), hotter, atol=0.03)


def test_top_p_draws_from_the_fewest_that_hold_it() -> None:
    for top_p, tokens in ((0.2, [1]), (0.49, [1]), (0.6, [1, 3]), (0.85, [0, 1, 3]), (0.95, [0, 1, 2, 3])):
        assert np.flatnonzero(drawn(Sampling(1, top_p, seed=2), 600)).tolist() == tokens
    kept = drawn(Sampling(1, 0.6, seed=3), 4000)
    np.testing.assert_allclose(kept[[1, 3]], [0.5 / 0.8, 0.3 / 0.8], atol=0.03)


@given(logits, st.floats(1e-3, HOTTEST), st.floats(1e-6, 1), st.integers(-(2**70), 2**70))
def test_a_token_is_one_of_the_vocabulary_and_comes_again(
    logits: np.ndarray, hot: float, top_p: float, seed: int
) -> None:
    sampling = Sampling(hot, top_p, seed)
    first, again = (sampling.chooser()(logits) for _ in range(2))
    assert first == again and 0 <= first < len(logits)
    assert logits[Sampling(1e-12, top_p, seed).chooser()(logits)] >= logits.max() - 1e-9


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": 2.1}, {"temperature": float("nan")}, {"top_p": 1.1}, {"top_p": -0.1}]
)
def test_what_nobody_can_draw_with(wrong: dict[str, float]) -> None:
    with pytest.raises(QuestionError, match="must be between 0 and"):
        Sampling(**wrong)


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_both_backends_draw_the_same_answers(backend: str, tiny_checkpoint: Path, recording: Path) -> None:
    if backend == "mlx":
        pytest.importorskip("mlx.core", reason="MLX is not installed")
    said = {}
    for name in {"torch", backend}:
        model = SpeechModel.load(str(tiny_checkpoint), name)
        listening = Listening(model, recording)
        list(listening)
        for sampling in (GREEDY, Sampling(1.5, seed=1), Sampling(1.5, seed=2), Sampling(1.5, 0.9, seed=1)):
            asking = ask(model, listening.memory, "what drink is order 4?", 12, sampling=sampling)
            assert "".join(asking) == asking.answer.answer
            said[name, sampling] = asking.answer.answer
    assert len({text for (name, _), text in said.items() if name == backend}) == 4
    assert all(text == said["torch", sampling] for (_, sampling), text in said.items())
