"""The backend protocol in plain numpy: it executes the core's plans, slowly and in float64.

It shares no code with the other backends, so that what all three agree on is right. It reads float checkpoints of
either layout, keeps memories in 16 bits only (here: as computed) and has no recogniser.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from speech_xl.backend import Recognition, Step
from speech_xl.config import ModelConfig
from speech_xl.errors import BackendError
from speech_xl.sampling import Choose
from speech_xl.schedule import IntervalPlan
from speech_xl.storage import memory_storage
from speech_xl.visibility import visible
from tests.numpy_backend.decoder import Layer, attend, attention_received, rms_norm, rotate
from tests.numpy_backend.encoder import Weights, linear, speech_tokens

KeysValues = tuple[np.ndarray, np.ndarray]  # of one layer, (kv_heads, M, head_dim) each; keys are rotated


@dataclass
class State:
    """Memory per layer, and speech tokens (N, D) that wait for their interval to fill."""

    memory: list[KeysValues]
    queued: np.ndarray


def behind(rows: KeysValues, more: KeysValues) -> KeysValues:
    """One after the other."""
    keys, values = (np.concatenate(pair, axis=1) for pair in zip(rows, more, strict=True))
    return keys, values


class Backend:
    """One loaded model."""

    name, device = "numpy", "cpu"

    def __init__(self, weights: Weights, config: ModelConfig):
        self.config = config
        self.itemsize = 8
        self.storage = memory_storage(16, config.decoder.head_dim)
        self._weights = weights
        self._layers = [Layer(weights, config.decoder, i) for i in range(config.decoder.num_hidden_layers)]

    @classmethod
    def load(cls, folder: Path, config: ModelConfig, memory_bits: int = 16) -> Backend:
        """Load every safetensors file of a checked checkpoint folder, in float64."""
        if config.quantization is not None or memory_bits != 16:
            raise BackendError("The numpy backend neither reads packed weights nor packs memories; use another one.")
        weights: Weights = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            weights |= {name: array.astype(np.float64) for name, array in load_file(path).items()}
        if config.layout == "mlx":
            weights = {n: a.swapaxes(1, 2) if ".conv" in n and a.ndim == 3 else a for n, a in weights.items()}
        return cls(weights, config)

    def start(self, prefix: list[int]) -> State:
        d = self.config.decoder
        empty = np.zeros((d.num_key_value_heads, 0, d.head_dim))
        state = State([(empty, empty)] * d.num_hidden_layers, np.zeros((0, d.hidden_size)))
        if prefix:
            state.memory = self._read(prefix, 0, state.memory)[0]
        return state

    def hear(self, parts: Sequence[tuple[State, list[int]]], mel: np.ndarray, valid_positions: np.ndarray) -> None:
        heard = iter(speech_tokens(self._weights, self.config, mel.astype(np.float64), valid_positions))
        for state, tokens in parts:
            state.queued = np.concatenate([state.queued, *(next(heard)[:count] for count in tokens)])

    def recognize(self, mel: np.ndarray, before: Sequence[Sequence[int]] = ()) -> list[Recognition]:
        raise BackendError("The numpy backend has no recogniser; use another one.")

    def hear_words(self, state: State, ids: list[int]) -> None:
        state.queued = np.concatenate([state.queued, self._weights["decoder.embed_tokens.weight"][ids]])

    def close_intervals(self, parts: Sequence[tuple[State, Sequence[IntervalPlan]]]) -> None:
        for state, plans in parts:
            for plan in plans:
                self._close_interval(state, plan)

    def _close_interval(self, state: State, plan: IntervalPlan) -> None:
        n, theta = plan.tokens, self.config.decoder.rope_theta
        x, state.queued = state.queued[:n], state.queued[n:]
        is_sst = np.arange(n + plan.ssts) >= n
        if plan.ssts:
            x = np.concatenate([x, np.tile(self._weights["decoder.sst_embedding"], (plan.ssts, 1))])
        query_positions = np.concatenate([plan.speech_positions, plan.sst_query_positions])
        key_positions = np.concatenate([plan.speech_positions, plan.slot_positions[: plan.ssts]])
        own = visible(plan.rows(), plan.rows())
        for number, layer in enumerate(self._layers):
            memory = self._evict(state.memory[number], plan)
            rows = layer.project(x, is_sst, query_positions)
            if plan.ssts and self.config.sst.pooled:
                layer.pool(rows, is_sst, plan.pooled_tokens(), np.array(self.config.sst.pool_columns(plan.ratio)))
            keys = rotate(rows.keys, key_positions, theta)
            if plan.attended:
                chosen = plan.attended_rows(attention_received(rows, keys))[..., None]
                left_keys, left_values = (np.take_along_axis(part, chosen, axis=1) for part in (rows.keys, rows.values))
                left_keys = rotate(left_keys, plan.slot_positions, theta)
            elif plan.selection is not None:
                left_keys = rotate(plan.selection @ rows.keys, plan.slot_positions, theta)
                left_values = plan.selection @ rows.values
            else:  # the SSTs', or all of a raw interval
                kept = is_sst if plan.ssts else ~is_sst
                left_keys, left_values = keys[:, kept], rows.values[:, kept]
            state.memory[number] = behind(memory, (left_keys, left_values))
            is_seen = np.ones(memory[0].shape[1], bool)
            is_seen[plan.hidden_from : plan.hidden_from + plan.hidden] = False
            mask = np.concatenate([np.tile(is_seen, (len(x), 1)), own], axis=1)
            heard, _ = attend(rows.queries, *behind(memory, (keys, rows.values)), mask)
            x = layer.finish(x, heard, is_sst)

    def _evict(self, memory: KeysValues, plan: IntervalPlan) -> KeysValues:
        """One layer's memory without the slots that leave; those behind them are rotated back to where they move."""
        if not plan.evicted:
            return memory
        first, past = plan.evict_from, plan.evict_from + plan.evicted
        back = np.full(memory[0].shape[1] - past, -plan.evicted)
        moved = rotate(memory[0][:, past:], back, self.config.decoder.rope_theta), memory[1][:, past:]
        return behind((memory[0][:, :first], memory[1][:, :first]), moved)

    def fork(self, state: State) -> State:
        return State(list(state.memory), state.queued)  # arrays are never written to, only replaced

    def slice(self, state: State, prefix: int, first: int, last: int) -> State:
        rows = np.r_[:prefix, prefix + first : prefix + last]
        return State([(keys[:, rows], values[:, rows]) for keys, values in state.memory], state.queued[:0])

    def join(self, state: State, other: State, prefix: int) -> State:
        joined = []
        for one, (keys, values) in zip(state.memory, other.memory, strict=True):
            moved = np.full(keys.shape[1] - prefix, one[0].shape[1] - prefix)
            turned = rotate(keys[:, prefix:], moved, self.config.decoder.rope_theta)
            joined.append(behind(one, (turned, values[:, prefix:])))
        return State(joined, state.queued[:0])

    def _read(
        self, ids: Sequence[int], position: int, memory: list[KeysValues]
    ) -> tuple[list[KeysValues], np.ndarray, np.ndarray]:
        """Text at `position` behind rows -> the rows with the text's own, logits (V,), last row's weights (layers, rows).

        `memory` itself is left as it was.
        """
        x = self._weights["decoder.embed_tokens.weight"][list(ids)]
        positions, is_sst = position + np.arange(len(ids)), np.zeros(len(ids), bool)
        grown, looks = [], []
        for layer, before in zip(self._layers, memory, strict=True):
            rows = layer.project(x, is_sst, positions)
            keys = rotate(rows.keys, positions, self.config.decoder.rope_theta)
            grown.append(behind(before, (keys, rows.values)))
            mask = np.tri(len(ids), grown[-1][0].shape[1], before[0].shape[1], dtype=bool)
            heard, weights = attend(rows.queries, *grown[-1], mask)
            looks.append(weights[:, -1].mean(0))
            x = layer.finish(x, heard, is_sst)
        last = rms_norm(self._weights, "decoder.norm", x[-1], self.config.decoder.rms_norm_eps)
        head = "decoder.embed_tokens" if self.config.decoder.tie_word_embeddings else "decoder.lm_head"
        return grown, linear({f"{head}.weight": self._weights[f"{head}.weight"]}, head, last), np.stack(looks)

    def answer(self, state: State, ids: list[int], position: int, choose: Choose | None = None) -> Generator[Step]:
        rows, slots = state.memory, state.memory[0][0].shape[1]
        layers = list(self.config.evidence_layers) or slice(None)
        while True:
            rows, logits, looks = self._read(ids, position, rows)
            token = int(logits.argmax()) if choose is None else choose(logits.astype(np.float32))
            step = Step(token, looks[layers, :slots].mean(0).astype(np.float32))
            yield step
            position += len(ids)
            ids = [step.token]

    def answer_together(
        self, state: State, texts: Sequence[list[int]], position: int, end_ids: Collection[int]
    ) -> Generator[dict[int, Step]]:
        going = {number: self.answer(state, ids, position) for number, ids in enumerate(texts)}
        while going:
            steps = {number: next(answer) for number, answer in going.items()}
            yield steps
            going = {number: answer for number, answer in going.items() if steps[number].token not in end_ids}

    def logits(self, state: State, ids: list[int], position: int) -> np.ndarray:
        return self._read(ids, position, state.memory)[1].astype(np.float32)

    def answer_spans(
        self,
        state: State,
        prefix: int,
        spans: list[tuple[int, int]],
        ids: list[int],
        end_ids: Collection[int],
        longest: int,
    ) -> list[list[int]]:
        said = []
        for first, last in spans:
            steps = self.answer(self.slice(state, prefix, first, last), ids, prefix + last)
            tokens = (step.token for step in itertools.islice(steps, longest))
            said.append(list(itertools.takewhile(lambda token: token not in end_ids, tokens)))
        return said

    def memory_bytes(self, state: State) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in state.memory)

    def export_memory(self, state: State) -> dict[str, np.ndarray]:
        keys, values = (np.stack(part).astype(np.float32) for part in zip(*state.memory, strict=True))
        return {"keys": keys, "values": values}

    def import_memory(self, arrays: dict[str, np.ndarray]) -> State:
        state = self.start([])
        wide = (arrays[name].astype(np.float64) for name in ("keys", "values"))
        state.memory = list(zip(*wide, strict=True))
        return state
