"""The keys and values of one decoder layer, in a buffer that grows in steps.

It knows nothing of audio, text or positions: rows come in rotated and stay where they are.
"""

from __future__ import annotations

import mlx.core as mx

GROWTH = 256  # slots: steps of fixed size, so that the slack stays small beside a long memory


class KeyValues:
    """Keys and values of shape (1, kv_heads, length, head_dim), appended to and never rewritten."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: mx.Dtype):
        self.length = 0
        self._buffers = [mx.zeros((1, kv_heads, 0, head_dim), dtype) for _ in range(2)]

    @property
    def keys(self) -> mx.array:
        return self._buffers[0][:, :, : self.length]

    @property
    def values(self) -> mx.array:
        return self._buffers[1][:, :, : self.length]

    def append(self, keys: mx.array, values: mx.array) -> None:
        """Add rows (1, kv_heads, R, head_dim) behind the present ones."""
        end = self.length + keys.shape[2]
        capacity = self._buffers[0].shape[2]
        for i, rows in enumerate((keys, values)):
            if end > capacity:
                old = self._buffers[i][:, :, : self.length]
                room = -(-end // GROWTH) * GROWTH - self.length
                self._buffers[i] = mx.concatenate([old, mx.zeros((*old.shape[:2], room, old.shape[3]), old.dtype)], axis=2)
            self._buffers[i][:, :, self.length : end] = rows.astype(self._buffers[i].dtype)
        self.length = end

    def copy(self) -> KeyValues:
        """An independent copy of the filled part."""
        twin = object.__new__(KeyValues)
        twin.length = self.length
        twin._buffers = [mx.array(self.keys), mx.array(self.values)]
        return twin
