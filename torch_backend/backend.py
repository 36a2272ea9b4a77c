"""PyTorch's implementation of the backend protocol: loading, states and steps; no decisions.

It knows the network and the plans that the core hands it; see speech_xl/backend.py for what each method
promises.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from speech_xl.backend import Recognition, Step
from speech_xl.config import ModelConfig
from speech_xl.sampling import Choose
from speech_xl.schedule import IntervalPlan
from speech_xl.storage import memory_storage
from speech_xl.visibility import text_mask
from torch_backend.attention import Pooled
from torch_backend.decoder import Intervals, Share
from torch_backend.graphs import Capture, CudaGraphs, Steps
from torch_backend.loading import hold_together, without_weights
from torch_backend.memory import KeyValues, TextCache
from torch_backend.model import SpeechXL
from torch_backend.packed import pack_all, replace_layers

# bfloat16 only where the device is fast at it: CPUs without its instructions are about 100 times slower.
FAST_DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}


def padded(rows: torch.Tensor, length: int) -> torch.Tensor:
    """(1, kv_heads, M, head_dim) -> (1, kv_heads, length, head_dim)."""
    return F.pad(rows, (0, 0, 0, length - rows.shape[2]))


@dataclass
class State:
    """Memory per layer, and speech tokens (1, N, D) that wait for their interval to fill."""

    memory: list[KeyValues]
    queued: torch.Tensor


class Backend:
    """One loaded model on one device."""

    name = "torch"

    def __init__(self, model: SpeechXL, config: ModelConfig, memory_bits: int = 16):
        self._model = model.eval().requires_grad_(False)
        self._packing: Future[None] | None = None
        self.config = config
        weight = model.decoder.embed_tokens.weight
        self.dtype, self._device = weight.dtype, weight.device
        self.itemsize = weight.element_size()
        self.storage = memory_storage(memory_bits, config.decoder.head_dim)
        on_gpu = self._device.type == "cuda"
        self._capture: Capture | None = CudaGraphs() if on_gpu else None
        self.device = f"cuda ({torch.cuda.get_device_name()})" if on_gpu else "cpu"

    @classmethod
    def load(
        cls, folder: Path, config: ModelConfig, memory_bits: int = 16, dtype: torch.dtype | None = None
    ) -> Backend:
        """Load every safetensors file of a checked checkpoint folder."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with without_weights():
            model = SpeechXL(config)
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            tensors |= load_file(path, device=device)
        model.load_state_dict(model.sanitize(tensors), assign=True)
        kind = dtype or FAST_DTYPE[device]
        packed = replace_layers(model) if (device, kind) == ("cpu", torch.float32) else []
        model = model.to(kind)
        for layer in model.decoder.layers:
            attention = layer.self_attn
            if attention.together is None:
                attention.together = hold_together([attention.q_proj, attention.k_proj, attention.v_proj])
        backend = cls(model, config, memory_bits)
        if packed:
            backend._packing = pack_all(packed)
        return backend

    @property
    def model(self) -> SpeechXL:
        """The network, once its weights are packed."""
        if self._packing is not None:
            self._packing.result()
        return self._model

    def _empty(self) -> list[KeyValues]:
        d, turned = self.config.decoder, self.model.decoder.turned
        return [
            KeyValues(d.num_key_value_heads, d.head_dim, self.dtype, self._device, self.storage, turned)
            for _ in range(d.num_hidden_layers)
        ]

    def _caches(self, texts: int) -> list[TextCache]:
        d = self.config.decoder
        none = torch.empty(texts, d.num_key_value_heads, 0, d.head_dim, dtype=self.dtype, device=self._device)
        return [TextCache(none, none) for _ in range(d.num_hidden_layers)]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        made = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":  # from pinned memory nobody waits for the copy, nor for the work before it
            return made.pin_memory().to(self._device, non_blocking=True)
        return made.to(self._device)

    @torch.inference_mode()
    def start(self, prefix: list[int]) -> State:
        memory = self._empty()
        if prefix:
            caches = self._caches(1)
            self._read([prefix], [0], memory, caches, np.zeros((1, len(prefix)), bool))
            for layer, cache in zip(memory, caches, strict=True):
                layer.append(*cache.filled)
        return State(memory, torch.zeros(1, 0, self.config.decoder.hidden_size, dtype=self.dtype, device=self._device))

    @torch.inference_mode()
    def hear(self, parts: Sequence[tuple[State, list[int]]], mel: np.ndarray, valid_positions: np.ndarray) -> None:
        windows = iter(self.model.speech(self._tensor(mel).to(self.dtype), self._tensor(valid_positions)))
        for state, tokens in parts:
            kept = [next(windows)[:count] for count in tokens]
            state.queued = torch.cat([state.queued[0], *kept])[None]

    @torch.inference_mode()
    def recognize(self, mel: np.ndarray, before: Sequence[Sequence[int]] = ()) -> list[Recognition]:
        speech = self.model.speech
        return speech.recognizer.recognize(speech.encoder(self._tensor(mel).to(self.dtype)), before)

    @torch.inference_mode()
    def hear_words(self, state: State, ids: list[int]) -> None:
        words = self.model.decoder.embed_tokens(torch.tensor([ids], dtype=torch.int64, device=self._device))
        state.queued = torch.cat([state.queued, words], dim=1)

    def _intervals(self, parts: Sequence[tuple[State, Sequence[IntervalPlan]]]) -> Intervals:
        """Plans of one shape, as tensors."""
        plans = [plan for _, own in parts for plan in own]
        plan, rotation = plans[0], self.model.decoder.rotation

        def rotations(positions: str) -> tuple[torch.Tensor, torch.Tensor]:
            return rotation(self._tensor(np.stack([getattr(p, positions) for p in plans])))

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
            pooled = self._tensor(tokens), self._tensor(columns)
        return Intervals(
            shares,
            rotations("speech_positions"),
            rotations("sst_query_positions"),
            rotations("slot_positions"),
            self._tensor(plan.sst_mask()),
            pooled,
            None if plan.selection is None else self._tensor(plan.selection).to(self.dtype),
            (self._tensor(plan.speech_mask()), plan.attended_rows) if plan.attended else None,
        )

    @torch.inference_mode()
    def close_intervals(self, parts: Sequence[tuple[State, Sequence[IntervalPlan]]]) -> None:
        heard = []
        for state, (plan, *more) in parts:
            tokens = plan.tokens * (1 + len(more))
            speech, state.queued = state.queued[0, :tokens], state.queued[:, tokens:].clone()
            heard.append(speech.unflatten(0, (-1, plan.tokens)))
            for layer in state.memory if plan.evicted else ():
                layer.evict(plan.evict_from, plan.evicted)
        self.model.decoder.intervals(torch.cat(heard), self._intervals(parts))

    def fork(self, state: State) -> State:
        return State([layer.fork() for layer in state.memory], state.queued.clone())

    def slice(self, state: State, prefix: int, first: int, last: int) -> State:
        parts = (0, prefix), (prefix + first, prefix + last)
        return State([layer.rows(*parts) for layer in state.memory], state.queued[:, :0].clone())

    def join(self, state: State, other: State, prefix: int) -> State:
        pairs = zip(state.memory, other.memory, strict=True)
        memory = [one.followed_by(more.rows((prefix, more.length)), one.length - prefix) for one, more in pairs]
        return State(memory, state.queued[:, :0].clone())

    def _read(
        self,
        texts: Sequence[Sequence[int]],
        positions: Sequence[int],
        memory: list[KeyValues],
        caches: list[TextCache],
        padding: np.ndarray,
        weighed: Collection[int] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read texts of the same length, each from its own position on; padding (B, T) bool, see text_mask."""
        ids = torch.tensor(texts, device=self._device)
        first = torch.tensor(positions, device=self._device)
        rotation = self.model.decoder.rotation(first[:, None] + torch.arange(ids.shape[1], device=self._device))
        mask = text_mask(padding, ids.shape[1])
        mask = self._tensor(mask) if isinstance(mask, np.ndarray) else mask
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
        steps = Steps(self.model.decoder, memory, weighed, self._capture)
        while going:
            with torch.inference_mode():  # not around the yield: it would leak into the caller
                found = steps.read([row[0] for row in ids], positions, caches, padding) if len(ids[0]) == 1 else None
                logits, weights = found or self._read(ids, positions, memory, caches, padding, weighed)
                shown = weights.cpu().numpy()
                tokens = (
                    logits.argmax(-1).tolist() if choose is None else list(map(choose, logits.float().cpu().numpy()))
                )
            yield {text: Step(tokens[row], shown[row]) for row, text in enumerate(going)}
            rows = [row for row, token in enumerate(tokens) if token not in end_ids]
            if 0 < len(rows) < len(going):  # finished texts leave the batch
                steps.put_back(caches)
                for cache in caches:
                    cache.keep(rows)
            self._capture = steps.capture  # None once it has failed
            positions = [positions[row] + len(ids[row]) for row in rows]
            padding = np.pad(padding[rows], ((0, 0), (0, 1)))
            going, ids = [going[row] for row in rows], [[tokens[row]] for row in rows]

    @torch.inference_mode()
    def logits(self, state: State, ids: list[int], position: int) -> np.ndarray:
        logits, _ = self._read([ids], [position], state.memory, self._caches(1), np.zeros((1, len(ids)), bool))
        return logits[0].to(torch.promote_types(logits.dtype, torch.float32)).cpu().numpy()

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
        nothing, caches = np.zeros((len(texts), 0), bool), self._caches(len(texts))
        return self._go_on(texts, [position] * len(texts), state.memory, caches, nothing, end_ids, weighed, choose)

    @torch.inference_mode()
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
        caches = []
        for layer in state.memory:  # little is copied of a memory: a few intervals, each once
            slots = [layer.rows((0, prefix), (prefix + first, prefix + last)).joined() for first, last in spans]
            parts = zip(*slots, strict=True)
            caches.append(TextCache(*(torch.cat([padded(p, prefix + most) for p in part]) for part in parts)))
        positions = [prefix + last for _, last in spans]
        said: list[list[int]] = [[] for _ in spans]
        answers = self._go_on([ids] * len(spans), positions, self._empty(), caches, padding, end_ids)
        for steps in itertools.islice(answers, longest):
            for span, step in steps.items():
                if step.token not in end_ids:
                    said[span].append(step.token)
        return said

    def memory_bytes(self, state: State) -> int:
        return sum(layer.nbytes for layer in state.memory)

    def export_memory(self, state: State) -> dict[str, np.ndarray]:
        layers = zip(*(layer.joined() for layer in state.memory), strict=True)
        parts = zip(("keys", "values"), layers, strict=True)
        return {name: torch.cat(part).float().cpu().numpy() for name, part in parts}

    @torch.inference_mode()
    def import_memory(self, arrays: dict[str, np.ndarray]) -> State:
        state = self.start([])
        for layer, keys, values in zip(state.memory, arrays["keys"], arrays["values"], strict=True):
            layer.append(self._tensor(keys)[None].to(self.dtype), self._tensor(values)[None].to(self.dtype))
        return state
