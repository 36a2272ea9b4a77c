"""Memories of any length without hearing them, and speech tokens without a recording.

How long an answer or an interval takes depends on how many slots there are, not on what they hold, so ten hours cost
seconds here. Word models: so many words a second as the shipped example has. It knows the schedule and the memory.
"""

from __future__ import annotations

import numpy as np

from speech_xl.backend import State
from speech_xl.config import SAMPLING_RATE, ModelConfig
from speech_xl.interval_batches import interval_batches
from speech_xl.memory import AudioMemory, RecordingSource, join_spans
from speech_xl.model import SpeechModel
from speech_xl.schedule import FixedRatio, Ratio, Scheduler

WORD_TOKENS_PER_SECOND = 3.2  # of calm speech read by a recogniser: the shipped example's
REPEATED_SLOTS = 512  # random slots that a long memory repeats: drawing them all would take minutes


def tokens_in(config: ModelConfig, seconds: float) -> int:
    """Speech tokens of a recording, a recogniser's estimated from the shipped example."""
    if config.recognizer is not None:
        return round(seconds * WORD_TOKENS_PER_SECOND)
    return config.tokens_for(round(seconds * SAMPLING_RATE))


def filled_memory(model: SpeechModel, seconds: float, ratio: Ratio) -> AudioMemory:
    """What hearing `seconds` of sound at `ratio` would leave, its keys and values drawn at random."""
    tokens, prefix = tokens_in(model.config, seconds), tuple(model.prompt.prefix_ids)
    plans = list(Scheduler(model.interval, FixedRatio(ratio), len(prefix), horizon=model.horizon).plan_all(tokens))
    spans = join_spans([plan.past for plan in plans])
    edges = np.linspace(0, seconds, tokens + 1, dtype=np.float32)
    d, slots = model.config.decoder, len(prefix) + len(spans)
    rng = np.random.default_rng(0)
    arrays = {}
    for name in ("keys", "values"):
        block = rng.standard_normal(
            (d.num_hidden_layers, d.num_key_value_heads, REPEATED_SLOTS, d.head_dim), np.float32
        )
        repeats = -(-slots // REPEATED_SLOTS)
        arrays[name] = np.tile(block.astype(np.float16), (1, 1, repeats, 1))[:, :, :slots]
    state = model.backend.import_memory(arrays)
    return AudioMemory(
        state=state,
        spans=spans,
        times=np.stack([edges[:-1], edges[1:]], axis=1),
        ratios=tuple(p.ratio for p in plans),
        interval=model.interval,
        prefix=prefix,
        recording=RecordingSource("random", seconds, seconds, ""),
        model=model.config.name,
        fingerprint=model.fingerprint,
        summarizer="sst",
        bytes=model.backend.memory_bytes(state),
    )


def text_tokens(model: SpeechModel, count: int, seed: int = 0) -> list[int]:
    """Ids that stand for speech: the decoder takes as long over any."""
    return np.random.default_rng(seed).integers(0, model.config.decoder.vocab_size, count).tolist()


def hear_tokens(model: SpeechModel, state: State, scheduler: Scheduler, ids: list[int]) -> None:
    """Hear speech tokens, given as ids, in whole intervals; what is left over at the end is one of its own."""
    model.backend.hear_words(state, ids)
    for batch in interval_batches(list(scheduler.plan_all(len(ids)))):
        model.backend.close_intervals([(state, batch)])
