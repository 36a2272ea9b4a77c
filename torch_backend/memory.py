"""The keys and values of one decoder layer, in a buffer that grows in steps.

It knows nothing of audio, text or positions: rows come in rotated and stay where they are.
"""

from __future__ import annotations

import torch

GROWTH = 256  # slots: steps of fixed size, so that the slack stays small beside a long memory


class KeyValues:
    """Keys and values of shape (1, kv_heads, length, head_dim), appended to and never rewritten."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device):
        self.length = 0
        self._buffers = [torch.empty(1, kv_heads, 0, head_dim, dtype=dtype, device=device) for _ in range(2)]

    @property
    def keys(self) -> torch.Tensor:
        return self._buffers[0][:, :, : self.length]

    @property
    def values(self) -> torch.Tensor:
        return self._buffers[1][:, :, : self.length]

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add rows (1, kv_heads, R, head_dim) behind the present ones."""
        end = self.length + keys.shape[2]
        capacity = self._buffers[0].shape[2]
        for i, rows in enumerate((keys, values)):
            if end > capacity:
                old = self._buffers[i]
                grown = old.new_empty(*old.shape[:2], -(-end // GROWTH) * GROWTH, old.shape[3])
                grown[:, :, : self.length] = old[:, :, : self.length]
                self._buffers[i] = grown
            self._buffers[i][:, :, self.length : end] = rows
        self.length = end

    def copy(self) -> KeyValues:
        """An independent copy of the filled part."""
        twin = object.__new__(KeyValues)
        twin.length = self.length
        twin._buffers = [self.keys.clone(), self.values.clone()]
        return twin
