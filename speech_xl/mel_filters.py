"""Slaney's mel filter bank, as librosa computes it: once, then from the user's cache.

librosa takes most of a second to import, which every first recording of a process would wait for. It knows the cache and
files, no sound.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from speech_xl.config import N_FFT, SAMPLING_RATE
from speech_xl.errors import OutputError
from speech_xl.fetching import cache_folder
from speech_xl.whole_file import whole_file


@lru_cache(maxsize=4)
def mel_filters(num_mel_bins: int) -> np.ndarray:
    """From 0 to 8 kHz, (num_mel_bins, 201) float32."""
    kept = cache_folder() / "mel_filters" / f"{num_mel_bins}-librosa-{importlib.metadata.version('librosa')}.npz"
    found = _read(kept, num_mel_bins)
    if found is None:
        from librosa.filters import mel

        found = mel(sr=SAMPLING_RATE, n_fft=N_FFT, n_mels=num_mel_bins, norm="slaney", dtype=np.float32)
        with contextlib.suppress(OSError, OutputError):  # without a cache it is computed again each time
            kept.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(kept) as temporary:
                np.savez(temporary, filters=found)
    return found


def _read(kept: Path, num_mel_bins: int) -> np.ndarray | None:
    """What is kept, None if it is absent or damaged; a .npz file holds a checksum of its arrays."""
    try:
        with np.load(kept, allow_pickle=False) as file:
            found: np.ndarray = file["filters"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if found.shape == (num_mel_bins, N_FFT // 2 + 1) and found.dtype == np.float32 else None
