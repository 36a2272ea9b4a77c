"""PyTorch's implementation of the backend protocol: loading, states and steps; no decisions.

It knows the network and the plans that the core hands it; see speech_xl/backend.py for what each method
promises.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
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
from torch_backend.decoder import Pooled
from torch_backend.loading import without_weights
from torch_backend.memory import KeyValues
from torch_backend.model import SpeechXL

# bfloat16 only where the device is fast at it: CPUs without its instructions are about 100 times slower.
FAST_DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}


@dataclass
class State:
    """Memory per layer, and speech tokens (1, N, D) that wait for their interval to fill."""

    memory: list[KeyValues]
    queued: torch.Tensor


class Backend:
    """One loaded model on one device."""

    name = "torch"

    def __init__(self, model: SpeechXL, config: ModelConfig, memory_bits: int = 16):
        self.model = model.eval().requires_grad_(False)
        self.config = config
        weight = model.decoder.embed_tokens.weight
        self.dtype, self._device = weight.dtype, weight.device
        self.itemsize = weight.element_size()
        self.storage = memory_storage(memory_bits, config.decoder.head_dim)
        on_gpu = self._device.type == "cuda"
        self.device = f"cuda ({torch.cuda.get_device_name()})" if on_gpu else "cpu"

    @classmethod
    def load(
        cls, folder: Path, config: ModelConfig, memory_bits: int = 16, dtype: torch.dtype | None = None
    ) -> Backend:
        """Load every safetensors file of a checked checkpoint folder."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with without_weights():
            model = SpeechXL(config)
        tensors = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            tensors |= load_file(path, device=device)
        model.load_state_dict(model.sanitize(tensors), assign=True)
        return cls(model.to(dtype or FAST_DTYPE[device]), config, memory_bits)

    def _empty(self, memory_bits: int = 16) -> list[KeyValues]:
        d = self.config.decoder
        storage = memory_storage(memory_bits, d.head_dim)
        return [
            KeyValues(d.num_key_value_heads, d.head_dim, self.dtype, self._device, storage)
            for _ in range(d.num_hidden_layers)
        ]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    @torch.inference_mode()
    def start(self, prefix: list[int]) -> State:
        memory = self._empty(self.storage.bits)
        if prefix:
            self._read(prefix, 0, self._empty(), memory)
        return State(memory, torch.zeros(1, 0, self.config.decoder.hidden_size, dtype=self.dtype, device=self._device))

    @torch.inference_mode()
    def hear(self, state: State, mel: np.ndarray, valid_positions: np.ndarray, tokens: list[int]) -> None:
        speech = self.model.speech(self._tensor(mel).to(self.dtype), self._tensor(valid_positions))
        kept = [window[:count] for window, count in zip(speech, tokens, strict=True)]
        state.queued = torch.cat([state.queued[0], *kept])[None]

    @torch.inference_mode()
    def recognize(self, mel: np.ndarray, before: Sequence[int] = ()) -> list[Recognition]:
        speech = self.model.speech
        return speech.recognizer.recognize(speech.encoder(self._tensor(mel).to(self.dtype)), before)

    @torch.inference_mode()
    def hear_words(self, state: State, ids: list[int]) -> None:
        words = self.model.decoder.embed_tokens(torch.tensor([ids], dtype=torch.int64, device=self._device))
        state.queued = torch.cat([state.queued, words], dim=1)

    def _pooled(self, plan: IntervalPlan) -> Pooled | None:
        if not (plan.ssts and self.config.sst.pooled):
            return None
        tokens = plan.pooled_tokens()[None]
        columns = np.broadcast_to(self.config.sst.pool_columns(plan.ratio), tokens.shape)
        return self._tensor(tokens), self._tensor(columns)

    @torch.inference_mode()
    def close_interval(self, state: State, plan: IntervalPlan) -> None:
        decoder = self.model.decoder
        speech, state.queued = state.queued[:, : plan.tokens], state.queued[:, plan.tokens :].clone()
        if plan.evicted:
            back = decoder.rotation(torch.tensor([-plan.evicted], device=self._device))
            decoder.evict(state.memory, plan.evict_from, plan.evicted, back)
        decoder.interval(
            speech,
            state.memory,
            decoder.rotation(self._tensor(plan.speech_positions)),
            decoder.rotation(self._tensor(plan.sst_query_positions)),
            decoder.rotation(self._tensor(plan.slot_positions)),
            self._tensor(plan.sst_mask()),
            None if plan.selection is None else self._tensor(plan.selection).to(self.dtype),
            plan.attended_rows if plan.attended else None,
            (plan.hidden_from, plan.hidden),
            self._pooled(plan),
        )

    def fork(self, state: State) -> State:
        return State([layer.copy() for layer in state.memory], state.queued.clone())

    @torch.inference_mode()
    def slice(self, state: State, prefix: int, first: int, last: int) -> State:
        rows = torch.cat([torch.arange(prefix), torch.arange(prefix + first, prefix + last)]).to(self._device)
        return State([layer.take(rows[None]) for layer in state.memory], state.queued[:, :0].clone())

    def _read(
        self, ids: list[int], position: int, memory: list[KeyValues], cache: list[KeyValues]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(position, position + len(ids), device=self._device)
        rotation = self.model.decoder.rotation(positions)
        return self.model.decoder.text(torch.tensor([ids], device=self._device), rotation, memory, cache)

    def answer(self, state: State, ids: list[int], position: int, choose: Choose | None = None) -> Generator[Step]:
        cache = self._empty()
        while True:
            with torch.inference_mode():  # not around the yield: it would leak into the caller
                logits, weights = self._read(ids, position, state.memory, cache)
                shown = weights[list(self.config.evidence_layers)] if self.config.evidence_layers else weights
                token = int(logits.argmax()) if choose is None else choose(logits[0].float().cpu().numpy())
                step = Step(token, shown.mean(0).cpu().numpy())
            yield step
            position += len(ids)
            ids = [step.token]

    @torch.inference_mode()
    def logits(self, state: State, ids: list[int], position: int) -> np.ndarray:
        return self._read(ids, position, state.memory, self._empty())[0][0].float().cpu().numpy()

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
        first, last = torch.tensor(spans, device=self._device).T
        slot = torch.arange(-prefix, int((last - first).max()), device=self._device)  # prefix rows are negative
        padding = slot >= (last - first)[:, None]
        rows = torch.where(padding, 0, prefix + slot + torch.where(slot < 0, 0, first[:, None]))
        memory = [layer.take(rows) for layer in state.memory]
        room = (0, 0, 0, len(ids) + longest - 1)  # behind the memories: columns for the text
        keys = [F.pad(layer.keys, room) for layer in memory]
        values = [F.pad(layer.values, room) for layer in memory]
        said: list[list[int]] = [[] for _ in spans]
        asked = list(range(len(spans)))  # the span of each batch row
        text = torch.tensor([ids] * len(spans), device=self._device)
        position, filled = prefix + last, rows.shape[1]
        for _ in range(longest):
            positions = position[:, None] + torch.arange(text.shape[1], device=self._device)
            rotation = self.model.decoder.rotation(positions)
            tokens = self.model.decoder.texts(text, rotation, keys, values, filled, padding).argmax(-1).tolist()
            position, filled = position + text.shape[1], filled + text.shape[1]
            going = [row for row, token in enumerate(tokens) if token not in end_ids]
            for row in going:
                said[asked[row]].append(tokens[row])
            if not going:
                break
            if len(going) < len(asked):  # finished rows leave the batch
                asked = [asked[row] for row in going]
                keys, values = [k[going] for k in keys], [v[going] for v in values]
                position, padding = position[going], padding[going]
            text = torch.tensor([[tokens[row]] for row in going], device=self._device)
        return said

    def memory_bytes(self, state: State) -> int:
        return sum(layer.nbytes for layer in state.memory)

    def export_memory(self, state: State) -> dict[str, np.ndarray]:
        return {
            name: torch.cat([getattr(layer, name) for layer in state.memory]).float().cpu().numpy()
            for name in ("keys", "values")
        }

    @torch.inference_mode()
    def import_memory(self, arrays: dict[str, np.ndarray]) -> State:
        state = self.start([])
        for layer, keys, values in zip(state.memory, arrays["keys"], arrays["values"], strict=True):
            layer.append(self._tensor(keys)[None].to(self.dtype), self._tensor(values)[None].to(self.dtype))
        return state
