"""MLX's implementation of the backend protocol: loading, states and steps; no decisions.

MLX arrays are lazy and belong to the thread that made them, so every public method runs on one worker
thread of its own and evaluates what it leaves behind; see speech_xl/backend.py for what each promises.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_backend.decoder import Pooled
from mlx_backend.memory import KeyValues
from mlx_backend.model import SpeechXL
from speech_xl.backend import Recognition, Step
from speech_xl.config import ModelConfig
from speech_xl.sampling import Choose
from speech_xl.schedule import IntervalPlan
from speech_xl.storage import memory_storage

CACHE_LIMIT = 256 * 2**20  # bytes of freed buffers that MLX may keep for reuse


@dataclass
class State:
    """Memory per layer, and speech tokens (1, N, D) that wait for their interval to fill."""

    memory: list[KeyValues]
    queued: mx.array


class Backend:
    """One loaded model on one device."""

    name = "mlx"

    def __init__(self, model: SpeechXL, config: ModelConfig, worker: ThreadPoolExecutor, memory_bits: int = 16):
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
        worker = ThreadPoolExecutor(1, thread_name_prefix="mlx")

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

        return cls(worker.submit(build).result(), config, worker, memory_bits)

    def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self._worker.submit(work, *arguments).result()

    def _empty(self, memory_bits: int = 16) -> list[KeyValues]:
        d = self.config.decoder
        storage = memory_storage(memory_bits, d.head_dim)
        return [KeyValues(d.num_key_value_heads, d.head_dim, self.dtype, storage) for _ in range(d.num_hidden_layers)]

    def _evaluate(self, state: State) -> None:
        mx.eval(state.queued, [layer._buffers for layer in state.memory])

    def start(self, prefix: list[int]) -> State:
        def work() -> State:
            memory = self._empty(self.storage.bits)
            if prefix:
                self._read(prefix, 0, self._empty(), memory)
            state = State(memory, mx.zeros((1, 0, self.config.decoder.hidden_size), self.dtype))
            self._evaluate(state)
            return state

        return self._run(work)

    def hear(self, state: State, mel: np.ndarray, valid_positions: np.ndarray, tokens: list[int]) -> None:
        def work() -> None:
            speech = self.model.speech(mx.array(mel).astype(self.dtype), mx.array(valid_positions))
            kept = [speech[i, :count] for i, count in enumerate(tokens)]
            state.queued = mx.concatenate([state.queued[0], *kept])[None]
            mx.eval(state.queued)

        self._run(work)

    def recognize(self, mel: np.ndarray, before: Sequence[int] = ()) -> list[Recognition]:
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

    def _pooled(self, plan: IntervalPlan) -> Pooled | None:
        if not (plan.ssts and self.config.sst.pooled):
            return None
        tokens = plan.pooled_tokens()[None]
        columns = np.broadcast_to(self.config.sst.pool_columns(plan.ratio), tokens.shape)
        return mx.array(tokens), mx.array(columns)

    def close_interval(self, state: State, plan: IntervalPlan) -> None:
        def work() -> None:
            decoder = self.model.decoder
            speech, state.queued = state.queued[:, : plan.tokens], state.queued[:, plan.tokens :]
            if plan.evicted:
                back = decoder.rotation(mx.array([-plan.evicted]))
                decoder.evict(state.memory, plan.evict_from, plan.evicted, back)
            decoder.interval(
                speech,
                state.memory,
                decoder.rotation(mx.array(plan.speech_positions)),
                decoder.rotation(mx.array(plan.sst_query_positions)),
                decoder.rotation(mx.array(plan.slot_positions)),
                mx.array(plan.sst_mask()),
                None if plan.selection is None else mx.array(plan.selection).astype(self.dtype),
                plan.attended_rows if plan.attended else None,
                (plan.hidden_from, plan.hidden),
                self._pooled(plan),
            )
            self._evaluate(state)  # release this interval's graph before the next one

        self._run(work)

    def fork(self, state: State) -> State:
        def work() -> State:
            copy = State([layer.copy() for layer in state.memory], mx.array(state.queued))
            self._evaluate(copy)
            return copy

        return self._run(work)

    def slice(self, state: State, prefix: int, first: int, last: int) -> State:
        def work() -> State:
            rows = mx.concatenate([mx.arange(prefix), mx.arange(prefix + first, prefix + last)])
            part = State([layer.take(rows[None]) for layer in state.memory], state.queued[:, :0])
            self._evaluate(part)
            return part

        return self._run(work)

    def _read(
        self, ids: list[int], position: int, memory: list[KeyValues], cache: list[KeyValues]
    ) -> tuple[mx.array, mx.array]:
        rotation = self.model.decoder.rotation(mx.arange(position, position + len(ids)))
        return self.model.decoder.text(mx.array([ids]), rotation, memory, cache)

    def answer(self, state: State, ids: list[int], position: int, choose: Choose | None = None) -> Generator[Step]:
        cache = self._run(self._empty)

        def work() -> Step:
            logits, weights = self._read(ids, position, state.memory, cache)
            shown = weights[list(self.config.evidence_layers)] if self.config.evidence_layers else weights
            token = int(logits.argmax()) if choose is None else choose(np.array(logits[0].astype(mx.float32)))
            return Step(token, np.array(shown.mean(0)))

        while True:
            step = self._run(work)
            yield step
            position += len(ids)
            ids = [step.token]

    def logits(self, state: State, ids: list[int], position: int) -> np.ndarray:
        def work() -> np.ndarray:
            return np.array(self._read(ids, position, state.memory, self._empty())[0][0].astype(mx.float32))

        return self._run(work)

    def answer_spans(
        self,
        state: State,
        prefix: int,
        spans: list[tuple[int, int]],
        ids: list[int],
        end_ids: Collection[int],
        longest: int,
    ) -> list[list[int]]:
        def work() -> list[list[int]]:
            first, last = mx.array(spans).T
            slot = mx.arange(-prefix, int((last - first).max()))  # prefix rows are negative
            padding = slot >= (last - first)[:, None]
            rows = mx.where(padding, 0, prefix + slot + mx.where(slot < 0, 0, first[:, None]))
            memory = [layer.take(rows) for layer in state.memory]
            room = [(0, 0), (0, 0), (0, len(ids) + longest - 1), (0, 0)]  # behind the memories: columns for the text
            keys = [mx.pad(layer.keys, room) for layer in memory]
            values = [mx.pad(layer.values, room) for layer in memory]
            said: list[list[int]] = [[] for _ in spans]
            asked = list(range(len(spans)))  # the span of each batch row
            text = mx.array([ids] * len(spans))
            position, filled = prefix + last, rows.shape[1]
            for _ in range(longest):
                positions = position[:, None] + mx.arange(text.shape[1])
                rotation = self.model.decoder.rotation(positions)
                logits = self.model.decoder.texts(text, rotation, keys, values, filled, padding)
                tokens = logits.argmax(-1).tolist()
                position, filled = position + text.shape[1], filled + text.shape[1]
                going = [row for row, token in enumerate(tokens) if token not in end_ids]
                for row in going:
                    said[asked[row]].append(tokens[row])
                if not going:
                    break
                if len(going) < len(asked):  # finished rows leave the batch
                    asked, left = [asked[row] for row in going], mx.array(going)
                    keys, values = [k[left] for k in keys], [v[left] for v in values]
                    position, padding = position[left], padding[left]
                text = mx.array([[tokens[row]] for row in going])
            return said

        return self._run(work)

    def memory_bytes(self, state: State) -> int:
        return self._run(lambda: sum(layer.nbytes for layer in state.memory))

    def export_memory(self, state: State) -> dict[str, np.ndarray]:
        def work() -> dict[str, np.ndarray]:
            return {
                name: np.array(mx.concatenate([getattr(layer, name) for layer in state.memory]).astype(mx.float32))
                for name in ("keys", "values")
            }

        return self._run(work)

    def import_memory(self, arrays: dict[str, np.ndarray]) -> State:
        state = self.start([])

        def work() -> None:
            for layer, keys, values in zip(state.memory, arrays["keys"], arrays["values"], strict=True):
                layer.append(mx.array(keys)[None].astype(self.dtype), mx.array(values)[None].astype(self.dtype))
            self._evaluate(state)

        self._run(work)
        return state
