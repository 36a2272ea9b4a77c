"""The keys and values of one decoder layer, in buffers that grow in steps, quantized where asked.

It knows nothing of audio, text or positions: rows come in rotated and stay as they are. Layout and
sizes of quantized rows are the core's (speech_xl/storage.py).
"""

from __future__ import annotations

import mlx.core as mx

from speech_xl.storage import MemoryStorage

GROWTH = 256  # slots: steps of fixed size, so that the slack stays small beside a long memory

Packed = tuple[mx.array, mx.array, mx.array]  # codes uint8, scales, lowest values


def pack(rows: mx.array, storage: MemoryStorage) -> Packed:
    """(..., head_dim) -> codes (..., head_dim * bits / 8), scales and lowest values (..., groups) of the rows' type."""
    groups = rows.astype(mx.float32).reshape(*rows.shape[:-1], -1, storage.group_size)
    lowest, highest = groups.min(-1), groups.max(-1)
    lowest = lowest.astype(rows.dtype)
    scales = ((highest - lowest.astype(mx.float32)) / storage.levels).astype(rows.dtype)
    step = mx.where(scales > 0, scales.astype(mx.float32), 1.0)[..., None]
    codes = mx.clip(mx.round((groups - lowest.astype(mx.float32)[..., None]) / step), 0, storage.levels)
    codes = codes.astype(mx.uint8).reshape(rows.shape)
    if storage.bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, scales, lowest


def unpack(packed: Packed, storage: MemoryStorage) -> mx.array:
    """What `pack` kept, (..., head_dim) in the scales' type."""
    codes, scales, lowest = packed
    if storage.bits == 4:
        codes = mx.stack([codes & 15, codes >> 4], axis=-1)
    groups = codes.astype(scales.dtype).reshape(*scales.shape, storage.group_size)
    return (lowest[..., None] + groups * scales[..., None]).flatten(-2)


class KeyValues:
    """Keys and values of shape (B, kv_heads, length, head_dim), appended to, cut at the end, never rewritten.

    B is 1, but where `take` made it.
    """

    def __init__(self, kv_heads: int, head_dim: int, dtype: mx.Dtype, storage: MemoryStorage):
        self.length = 0
        self._storage = storage
        widths, kinds = [head_dim], [dtype]
        if storage.is_packed:
            groups = head_dim // storage.group_size
            widths, kinds = [head_dim * storage.bits // 8, groups, groups], [mx.uint8, dtype, dtype]
        self._buffers = [mx.zeros((1, kv_heads, 0, w), kind) for w, kind in zip(widths * 2, kinds * 2, strict=True)]

    def _parts(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """What is kept of rows: keys and values, or the three parts of each."""
        if not self._storage.is_packed:
            return [keys, values]
        return [*pack(keys, self._storage), *pack(values, self._storage)]

    def _filled(self) -> list[mx.array]:
        return [buffer[:, :, : self.length] for buffer in self._buffers]

    @property
    def keys(self) -> mx.array:
        parts = self._filled()
        return unpack(parts[:3], self._storage) if self._storage.is_packed else parts[0]

    @property
    def values(self) -> mx.array:
        parts = self._filled()
        return unpack(parts[3:], self._storage) if self._storage.is_packed else parts[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the filled part."""
        return sum(part.nbytes for part in self._filled())

    def append(self, keys: mx.array, values: mx.array) -> None:
        """Add rows (1, kv_heads, R, head_dim) behind the present ones."""
        end = self.length + keys.shape[2]
        capacity = self._buffers[0].shape[2]
        for i, rows in enumerate(self._parts(keys, values)):
            if end > capacity:
                old = self._buffers[i][:, :, : self.length]
                room = mx.zeros((*old.shape[:2], -(-end // GROWTH) * GROWTH - self.length, old.shape[3]), old.dtype)
                self._buffers[i] = mx.concatenate([old, room], axis=2)
            self._buffers[i][:, :, self.length : end] = rows
        self.length = end

    def cut(self, length: int) -> None:
        """Forget the rows from `length` on; what was read of them before stays as it was."""
        self._buffers = [buffer[:, :, :length] for buffer in self._buffers]
        self.length = length

    def take(self, rows: mx.array) -> KeyValues:
        """Copies of some rows of the one batch row: rows (B, R) int64 -> B times R of them, quantized as they are."""
        twin = object.__new__(KeyValues)
        twin.length, twin._storage = rows.shape[1], self._storage
        twin._buffers = [buffer[0][:, rows].swapaxes(0, 1) for buffer in self._buffers]
        return twin

    def copy(self) -> KeyValues:
        """An independent copy of the filled part."""
        twin = object.__new__(KeyValues)
        twin.length, twin._storage = self.length, self._storage
        twin._buffers = [mx.array(part) for part in self._filled()]
        return twin
