"""MLX's implementation of the backend protocol: loading, states and steps; no decisions.

MLX arrays are lazy and belong to the thread that made them, so every public method runs on one worker
thread of its own and evaluates what it leaves behind; see speech_xl/backend.py for what each promises.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_backend.attention import Pooled
from mlx_backend.decoder import Intervals, Share
from mlx_backend.memory import KeyValues, TextCache
from mlx_backend.model import SpeechXL
from mlx_backend.worker import Worker
from speech_xl.backend import Recognition, Step
from speech_xl.config import ModelConfig
from speech_xl.sampling import Choose
from speech_xl.schedule import IntervalPlan
from speech_xl.storage import memory_storage
from speech_xl.visibility import text_mask

CACHE_LIMIT = 256 * 2**20  # bytes of freed buffers that MLX may keep for reuse


def padded(rows: mx.array, length: int) -> mx.array:
    """(1, kv_heads, M, head_dim) -> (1, kv_heads, length, head_dim)."""
    return mx.pad(rows, [(0, 0), (0, 0), (0, length - rows.shape[2]), (0, 0)])


@dataclass
class State:
    """Memory per layer, and speech tokens (1, N, D) that wait for their interval to fill."""

    memory: list[KeyValues]
    queued: mx.array


class Backend:
    """One loaded model on one device."""

    name = "mlx"

    def __init__(self, model: SpeechXL, config: ModelConfig, worker: Worker, memory_bits: int = 16):
        self.model = model
        self.config = config
        self._worker = worker
        self.dtype = model.decoder.norm.weight.dtype
        self.itemsize = self.dtype.size
        self.storage = memory_storage(memory_bits, config.decoder.head_dim)
        self.device = "gpu (Apple Silicon)" if mx.default_device() == mx.gpu else "cpu"

    @classmethod
    def load(cls, folder: Path, config: ModelConfig, memory_bits: int = 16, dtype: mx.Dtype | None = None) -> Backend:
        """Load every safetensors file of a checked checkpoint folder."""
        worker = Worker()

        def build() -> SpeechXL:
            on_gpu = mx.default_device() == mx.gpu
            mx.set_cache_limit(CACHE_LIMIT)
            if on_gpu:  # as mlx-lm does: weights that may not be paged out are read faster
                mx.set_wired_limit(mx.device_info()["max_recommended_working_set_size"])
            model = SpeechXL(config)
            weights: dict[str, mx.array] = {}
            for path in sorted(Path(folder).glob("*.safetensors")):
                weights |= mx.load(str(path))
            # 16-bit numbers are fast on Apple's GPUs and very slow on CPUs.
            kind = dtype or (getattr(mx, config.dtype) if on_gpu else mx.float32)
            if config.quantization is not None:
                packed = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
                nn.quantize(model, **config.quantization, class_predicate=lambda name, _: name in packed)
            weights = {n: t.astype(kind) if mx.issubdtype(t.dtype, mx.floating) else t for n, t in weights.items()}
            model.load_weights(list(model.sanitize(weights).items()))
            mx.eval(model.parameters())
            return model

        return cls(worker.run(build), config, worker, memory_bits)

    def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self._worker.run(work, *arguments)

    def _empty(self) -> list[KeyValues]:
        d, turned = self.config.decoder, self.model.decoder.turned
        return [
            KeyValues(d.num_key_value_heads, d.head_dim, self.dtype, self.storage, turned)
            for _ in range(d.num_hidden_layers)
        ]

    def _caches(self, texts: int) -> list[TextCache]:
        d = self.config.decoder
        none = mx.zeros((texts, d.num_key_value_heads, 0, d.head_dim), self.dtype)
        return [TextCache(none, none) for _ in range(d.num_hidden_layers)]

    def _evaluate(self, state: State) -> None:
        mx.eval(state.queued, [page.slab for layer in state.memory for page in layer.pages])

    def start(self, prefix: list[int]) -> State:
        def work() -> State:
            memory = self._empty()
            if prefix:
                caches = self._caches(1)
                self._read([prefix], [0], memory, caches, np.zeros((1, len(prefix)), bool))
                for layer, cache in zip(memory, caches, strict=True):
                    layer.append(*cache.filled)
            state = State(memory, mx.zeros((1, 0, self.config.decoder.hidden_size), self.dtype))
            self._evaluate(state)
            return state

        return self._run(work)

    def hear(self, parts: Sequence[tuple[State, list[int]]], mel: np.ndarray, valid_positions: np.ndarray) -> None:
        def work() -> None:
            windows = iter(self.model.speech(mx.array(mel).astype(self.dtype), mx.array(valid_positions)))
            for state, tokens in parts:
                kept = [next(windows)[:count] for count in tokens]
                state.queued = mx.concatenate([state.queued[0], *kept])[None]
            mx.eval([state.queued for state, _ in parts])

        self._run(work)

    def recognize(self, mel: np.ndarray, before: Sequence[Sequence[int]] = ()) -> list[Recognition]:
        def work() -> list[Recognition]:
            speech = self.model.speech
            return speech.recognizer.recognize(speech.encoder(mx.array(mel).astype(self.dtype)), before)

        return self._run(work)

    def hear_words(self, state: State, ids: list[int]) -> None:
        def work() -> None:
            words = self.model.decoder.embed_tokens(mx.array([ids], mx.int32)).astype(self.dtype)
            state.queued = mx.concatenate([state.queued, words], axis=1)
            mx.eval(state.queued)

        self._run(work)

    def _intervals(self, parts: Sequence[tuple[State, Sequence[IntervalPlan]]]) -> Intervals:
        """Plans of one shape, as tensors."""
        plans = [plan for _, own in parts for plan in own]
        plan, rotation = plans[0], self.model.decoder.rotation

        def rotations(positions: str) -> tuple[mx.array, mx.array]:
            return rotation(mx.array(np.stack([getattr(p, positions) for p in plans])))

        shares: list[Share] = []
        first = 0
        for state, own in parts:
            seen = (0, own[0].hidden_from), (own[0].hidden_from + own[0].hidden, state.memory[0].length)
            shares.append(Share(state.memory, slice(first, first + len(own)), seen))
            first += len(own)
        pooled: Pooled | None = None
        sst = self.config.sst
        if plan.ssts and plan.ratio is not None and sst is not None and sst.pooled:
            tokens = np.stack([p.pooled_tokens() for p in plans])
            columns = np.resize(sst.pool_columns(plan.ratio), tokens.shape)
            pooled = mx.array(tokens), mx.array(columns)
        return Intervals(
            shares,
            rotations("speech_positions"),
            rotations("sst_query_positions"),
            rotations("slot_positions"),
            mx.array(plan.sst_mask()),
            pooled,
            None if plan.selection is None else mx.array(plan.selection).astype(self.dtype),
            (mx.array(plan.speech_mask()), plan.attended_rows) if plan.attended else None,
        )

    def close_intervals(self, parts: Sequence[tuple[State, Sequence[IntervalPlan]]]) -> None:
        def work() -> None:
            heard = []
            for state, (plan, *more) in parts:
                tokens = plan.tokens * (1 + len(more))
                speech, state.queued = state.queued[0, :tokens], state.queued[:, tokens:]
                heard.append(speech.reshape(-1, plan.tokens, speech.shape[1]))
                for layer in state.memory if plan.evicted else ():
                    layer.evict(plan.evict_from, plan.evicted)
            self.model.decoder.intervals(mx.concatenate(heard), self._intervals(parts))
            for state, _ in parts:
                self._evaluate(state)  # release this batch's graph before the next one

        self._run(work)

    def fork(self, state: State) -> State:
        return State([layer.fork() for layer in state.memory], state.queued)

    def slice(self, state: State, prefix: int, first: int, last: int) -> State:
        def work() -> State:
            parts = (0, prefix), (prefix + first, prefix + last)
            return State([layer.rows(*parts) for layer in state.memory], state.queued[:, :0])

        return self._run(work)

    def join(self, state: State, other: State, prefix: int) -> State:
        def work() -> State:
            pairs = zip(state.memory, other.memory, strict=True)
            memory = [one.followed_by(more.rows((prefix, more.length)), one.length - prefix) for one, more in pairs]
            return State(memory, state.queued[:, :0])

        return self._run(work)

    def _read(
        self,
        texts: Sequence[Sequence[int]],
        positions: Sequence[int],
        memory: list[KeyValues],
        caches: list[TextCache],
        padding: np.ndarray,
        weighed: Collection[int] = (),
    ) -> tuple[mx.array, mx.array]:
        """Read texts of the same length, each from its own position on; padding (B, T) bool, see text_mask."""
        ids = mx.array(texts)
        rotation = self.model.decoder.rotation(mx.array(positions)[:, None] + mx.arange(ids.shape[1]))
        mask = text_mask(padding, ids.shape[1])
        mask = mx.array(mask) if isinstance(mask, np.ndarray) else mask
        return self.model.decoder.text(ids, rotation, memory, caches, mask, weighed)

    def _go_on(
        self,
        texts: Sequence[Sequence[int]],
        positions: Sequence[int],
        memory: list[KeyValues],
        caches: list[TextCache],
        padding: np.ndarray,
        end_ids: Collection[int],
        weighed: Collection[int] = (),
        choose: Choose | None = None,
    ) -> Generator[dict[int, Step]]:
        """Steps, greedy without `choose`, of several texts, those that are not over by their numbers; padding (B, columns before the texts)."""
        longest = max(map(len, texts))
        before = [longest - len(ids) for ids in texts]  # texts end together: the shorter ones stand behind padding
        ids = [[0] * n + list(text) for n, text in zip(before, texts, strict=True)]
        padding = np.concatenate([padding, np.arange(longest) < np.array(before)[:, None]], axis=1)
        positions = [position - n for position, n in zip(positions, before, strict=True)]
        going = list(range(len(texts)))

        def work() -> tuple[list[int], np.ndarray]:
            logits, weights = self._read(ids, positions, memory, caches, padding, weighed)
            shown = np.array(weights)
            if choose is None:
                return logits.argmax(-1).tolist(), shown
            return list(map(choose, np.array(logits.astype(mx.float32)))), shown

        def keep(rows: list[int]) -> None:
            for cache in caches:
                cache.keep(rows)

        while going:
            tokens, shown = self._run(work)
            yield {text: Step(tokens[row], shown[row]) for row, text in enumerate(going)}
            rows = [row for row, token in enumerate(tokens) if token not in end_ids]
            if 0 < len(rows) < len(going):  # finished texts leave the batch
                self._run(keep, rows)
            positions = [positions[row] + len(ids[row]) for row in rows]
            padding = np.pad(padding[rows], ((0, 0), (0, 1)))
            going, ids = [going[row] for row in rows], [[tokens[row]] for row in rows]

    def logits(self, state: State, ids: list[int], position: int) -> np.ndarray:
        def work() -> np.ndarray:
            logits, _ = self._read([ids], [position], state.memory, self._caches(1), np.zeros((1, len(ids)), bool))
            return np.array(logits[0].astype(mx.float32))

        return self._run(work)

    def answer(self, state: State, ids: list[int], position: int, choose: Choose | None = None) -> Generator[Step]:
        for steps in self._answers(state, [ids], position, (), choose):
            yield steps[0]

    def answer_together(
        self, state: State, texts: Sequence[list[int]], position: int, end_ids: Collection[int]
    ) -> Generator[dict[int, Step]]:
        return self._answers(state, texts, position, end_ids)

    def _answers(
        self,
        state: State,
        texts: Sequence[list[int]],
        position: int,
        end_ids: Collection[int],
        choose: Choose | None = None,
    ) -> Generator[dict[int, Step]]:
        weighed = self.config.evidence_layers or range(self.config.decoder.num_hidden_layers)
        nothing, caches = np.zeros((len(texts), 0), bool), self._run(self._caches, len(texts))
        return self._go_on(texts, [position] * len(texts), state.memory, caches, nothing, end_ids, weighed, choose)

    def answer_spans(
        self,
        state: State,
        prefix: int,
        spans: list[tuple[int, int]],
        ids: list[int],
        end_ids: Collection[int],
        longest: int,
    ) -> list[list[int]]:
        most = max(last - first for first, last in spans)
        padding = np.arange(-prefix, most) >= np.array([[last - first] for first, last in spans])

        def work() -> list[TextCache]:
            caches = []
            for layer in state.memory:  # little is copied of a memory: a few intervals, each once
                slots = [layer.rows((0, prefix), (prefix + first, prefix + last)).joined() for first, last in spans]
                parts = zip(*slots, strict=True)
                caches.append(TextCache(*(mx.concatenate([padded(p, prefix + most) for p in part]) for part in parts)))
            return caches

        positions = [prefix + last for _, last in spans]
        said: list[list[int]] = [[] for _ in spans]
        caches, nothing = self._run(work), self._run(self._empty)
        answers = self._go_on([ids] * len(spans), positions, nothing, caches, padding, end_ids)
        for steps in itertools.islice(answers, longest):
            for span, step in steps.items():
                if step.token not in end_ids:
                    said[span].append(step.token)
        return said

    def memory_bytes(self, state: State) -> int:
        return self._run(lambda: sum(layer.nbytes for layer in state.memory))

    def export_memory(self, state: State) -> dict[str, np.ndarray]:
        def work() -> dict[str, np.ndarray]:
            layers = zip(*(layer.joined() for layer in state.memory), strict=True)
            parts = zip(("keys", "values"), layers, strict=True)
            return {name: np.array(mx.concatenate(part).astype(mx.float32)) for name, part in parts}

        return self._run(work)

    def import_memory(self, arrays: dict[str, np.ndarray]) -> State:
        state = self.start([])

        def work() -> None:
            for layer, keys, values in zip(state.memory, arrays["keys"], arrays["values"], strict=True):
                layer.append(mx.array(keys)[None].astype(self.dtype), mx.array(values)[None].astype(self.dtype))
            self._evaluate(state)

        self._run(work)
        return state
