"""What the frozen front end makes of sound, kept on disk, so that a training step costs the decoder only.

Encoder outputs (before the adapter, float16) for checkpoints with an adapter, the words heard for those with a
recogniser. An entry's name says of which sound, which part of it and which encoder it is; entries are never changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from speech_xl.backend import load_backend
from speech_xl.config import ModelConfig
from speech_xl.config_file import load_config
from speech_xl.quiet_windows import QuietWindowStream, lone_window
from speech_xl.recognition import load_recognizer_tokenizer
from speech_xl.whole_file import whole_file
from speech_xl.word_reader import Earlier, WordReader, group_size
from torch_backend.encoder import SpeechTower
from training.data import Recording, sound_hash
from training.network import WINDOWS_AT_ONCE, kept_outputs, read_tensors
from training.sound import encoder_windows, read_samples


class FeatureCache:
    """A folder of entries. `front_end` is the hash of what makes them."""

    def __init__(self, folder: Path, front_end: str):
        self._folder, self._front_end = folder, front_end

    def entry(self, recording: Recording, ending: str, make: Callable[[np.ndarray], bytes]) -> Path:
        """The file of a recording's entry, which `make` makes of its samples where there is none yet.

        Its name says by which sound, which span of it and which front end it was computed.
        """
        key = f"{sound_hash(recording)}/{recording.start}/{recording.end}/{self._front_end}"
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{ending}"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                temporary.write_bytes(make(read_samples(recording)))
        return path


def front_end_hash(source: Path, config: ModelConfig, encoder_only: bool = False) -> str:
    """SHA-256 of the encoder's, and, unless `encoder_only`, the recogniser's, weights and geometry."""
    geometry = (config.encoder, config.adapter and config.adapter.stack, None if encoder_only else config.recognizer)
    total = hashlib.sha256(repr(geometry).encode())
    parts = ("speech.encoder.",) if encoder_only else ("speech.encoder.", "speech.recognizer.")
    for name, tensor in read_tensors(source, lambda n: n.startswith(parts)):
        total.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@torch.inference_mode()
def encode(tower: SpeechTower, samples: np.ndarray) -> np.ndarray:
    """(n,) samples -> (N * stack, d_model) float16: the encoder's outputs under the recording's speech tokens."""
    mel, valid, tokens = encoder_windows(samples, tower.config)
    device = next(tower.parameters()).device
    outputs = [
        kept_outputs(
            tower,
            torch.from_numpy(mel[i : i + WINDOWS_AT_ONCE]).to(device),
            torch.from_numpy(valid[i : i + WINDOWS_AT_ONCE]).to(device),
        )
        for i in range(0, len(mel), WINDOWS_AT_ONCE)
    ]
    stack = tower.config.adapter.stack
    rows = [window[: count * stack] for window, count in zip(torch.cat(outputs), tokens, strict=True)]
    return torch.cat(rows).cpu().numpy().astype(np.float16)


@torch.inference_mode()
def encode_window(tower: SpeechTower, samples: np.ndarray) -> np.ndarray:
    """(n,) samples of at most one window -> (S, d_model) float16: what the recogniser reads, padding included."""
    window = lone_window(samples, tower.config.encoder)
    mel = torch.from_numpy(window.mel)[None].to(next(tower.parameters()).device)
    return tower.encoder(mel)[0].float().cpu().numpy().astype(np.float16)


def recognizer_of(source: Path) -> Callable[[np.ndarray], bytes]:
    """A function from samples (n,) to the words that a checkpoint's recogniser hears in them, in UTF-8."""
    config = load_config(source)  # a recipe's own SSTs are not in the source
    backend = load_backend("torch", source, config)
    tokenizer = load_recognizer_tokenizer(source, config.recognizer.vocab_size)
    reader = WordReader(backend, tokenizer, config.recognizer)

    def hear(samples: np.ndarray) -> bytes:
        stream, earlier = QuietWindowStream(config.encoder), Earlier()
        waiting, words, number = [*stream.push(samples), *stream.finish()], [], 0
        while waiting:  # in groups, as a listener reads them
            group, waiting = waiting[: group_size(number)], waiting[group_size(number) :]
            words += [word.text for found in reader.read([(group, earlier)])[0] for word in found]
            number += 1
        return " ".join(words).encode()

    return hear
