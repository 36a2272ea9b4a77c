"""Re-reading a finished conversion: every number against the source, and the network against transformers'.

It reads the output as a stranger would, from its files, and knows which model of transformers computes each
family. A difference stops the conversion before its folder gets its name.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch

from converters import qwen2_audio, voxtral
from converters.source import Stored, first_line, read_json, tensors_of
from converters.stream import Recipe, unpack
from converters.target import OWN, Plan
from speech_xl.backend import backend_for_layout, load_backend
from speech_xl.config import HOP_LENGTH, ModelConfig
from speech_xl.describe import machine_memory
from speech_xl.errors import CheckpointError
from speech_xl.features import WindowStream
from speech_xl.schedule import ListedRatios, Scheduler

TOLERANCE = 1e-4  # of float32 logits
INTERVAL = 64  # speech tokens
SECONDS = 3.0  # of sound that both networks hear


class Verifier:
    """Call it with the output's folder; `lines` says what held. CheckpointError names what did not."""

    def __init__(self, plan: Plan, folder: Path, decoder: Path | None):
        self._plan, self._folder, self._decoder = plan, folder, decoder
        self.lines: list[str] = []

    def __call__(self, out: Path) -> None:
        stored = tensors_of(out)
        packed = 0
        for recipe in self._plan.recipes:
            check_tensor(recipe, stored)
            packed += recipe.packing is not None
        count = len(self._plan.recipes)
        self.lines.append(f"{count - packed} tensors equal the source's bit for bit in {self._plan.dtypes}")
        if packed:
            self.lines.append(f"{packed} packed tensors are within one quantization step")
        self._check_network(out)

    def _check_network(self, out: Path) -> None:
        config = self._plan.config
        if self._plan.family == OWN:
            return
        stored = sum(path.stat().st_size for path in self._plan.files)
        if 4 * stored > usable_memory() // 2:  # two models in float32, each twice as large as in 16 bits
            self.lines.append("logits were not compared: the model does not fit this machine's memory twice")
            return
        backend = backend_for_layout(config.layout)
        sound = chirps(SECONDS)
        try:
            theirs = their_logits(self._plan.family, self._folder, self._decoder, config, sound)
        except Exception as error:  # a library of strangers, which may fail in any way and is not what is checked
            reason = first_line(error)
            self.lines.append(f"logits were not compared: transformers cannot load this source ({reason})")
            return
        ours = our_logits(out, config, backend, sound, text_only=self._decoder is not None)
        apart = float(np.abs(ours - theirs).max())
        is_exact = config.quantization is None and not any(r.is_narrowed for r in self._plan.recipes)
        # "not <=": a NaN is no small difference
        if is_exact and not apart <= TOLERANCE * max(1.0, float(np.abs(theirs).max())):
            raise CheckpointError(f"Logits on {backend} differ from transformers' by {apart:.2g}; report this source.")
        self.lines.append(f"logits on {backend} differ from transformers' by at most {apart:.2g}")


def check_tensor(recipe: Recipe, stored: dict[str, Stored]) -> None:
    """What was written of one tensor, read again: its shapes, finite numbers, and the source's values."""
    for name, (shape, dtype) in recipe.outputs().items():
        if name not in stored or stored[name].shape != shape or stored[name].dtype != dtype:
            raise CheckpointError(f"The output's tensor {name} is missing or misshapen; convert again.")
    first = 0
    for piece in recipe.numbers():
        expected = piece.to(recipe.dtype)
        rows = len(expected)
        found = stored[recipe.name].rows(first, rows) if recipe.row is None else stored[recipe.name].whole()
        if recipe.packing is None:
            is_right = torch.equal(found, expected.to(recipe.dtype))
        else:
            base = recipe.name.removesuffix(".weight")
            scales, biases = (stored[f"{base}.{part}"].rows(first, rows) for part in ("scales", "biases"))
            found = unpack(found, scales, biases, recipe.packing)
            step = scales.float().abs().repeat_interleave(recipe.packing.group_size, 1)
            rounding = torch.finfo(recipe.dtype).eps * 2 * expected.float().abs().amax()
            is_right = bool(((found - expected.float()).abs() <= step + rounding).all())
        if not torch.isfinite(found.float()).all():
            raise CheckpointError(f"The tensor {recipe.name} holds numbers that are not finite; its source is broken.")
        if not is_right:
            raise CheckpointError(f"The output's tensor {recipe.name} is not what its source holds; convert again.")
        first += rows


def usable_memory() -> int:
    """Bytes that this process may have: the machine's, or less where a limit was set."""
    limits = [machine_memory()]
    with contextlib.suppress(OSError, ValueError):  # another system, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with contextlib.suppress(ImportError):  # another system
        import resource

        limits += [n for n in resource.getrlimit(resource.RLIMIT_AS) if n != resource.RLIM_INFINITY]
    return min(limits)


def chirps(seconds: float) -> np.ndarray:
    """(n,) float32 that changes all the time."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    return (0.3 * np.sin(2 * np.pi * (300 + 200 * np.sin(2 * t)) * t)).astype(np.float32)


def hear(config: ModelConfig, sound: np.ndarray) -> tuple[np.ndarray, int]:
    """The first window (1, num_mel_bins, T) and its samples of sound."""
    stream = WindowStream(config.encoder)
    window = (stream.push(sound) + stream.finish())[0]
    assert window.mel is not None  # only a recogniser's windows can be silent
    return window.mel[None], window.valid_samples


def ids_of(config: ModelConfig) -> tuple[list[int], list[int]]:
    """Some token ids before and behind the audio."""
    last = min(config.decoder.vocab_size, 200) - 1
    return [n % last for n in (31, 32, 33)], [n % last for n in (37, 41, 43, 47)]


def our_logits(out: Path, config: ModelConfig, name: str, sound: np.ndarray, text_only: bool) -> np.ndarray:
    """(V,) of the output itself, heard raw in intervals."""
    backend = load_backend(name, out, config)
    before, after = ids_of(config)
    state = backend.start(before)
    scheduler = Scheduler(INTERVAL, ListedRatios((None,)), len(before))
    if not text_only:
        mel, samples = hear(config, sound)
        tokens = config.tokens_of_window(samples)
        backend.hear([(state, [tokens])], mel, np.array([-(-samples // (2 * HOP_LENGTH))]))
        for plan in scheduler.plan_all(tokens):
            backend.close_intervals([(state, [plan])])
    return backend.logits(state, after, scheduler.base)


def their_logits(family: str, folder: Path, decoder: Path | None, config: ModelConfig, sound: np.ndarray) -> np.ndarray:
    """(V,) of transformers' own model in float32 on the same windows and ids."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    before, after = ids_of(config)
    kind = torch.float32
    with torch.inference_mode():
        if decoder is not None:
            model = transformers.AutoModelForCausalLM.from_pretrained(decoder, dtype=kind).eval()
            return model(input_ids=torch.tensor([before + after])).logits[0, -1].numpy()
        mel, samples = hear(config, sound)
        audio = read_json(folder / "config.json")
        mark = audio.get(
            "audio_token_index", audio.get("audio_token_id", 24 if family == voxtral.FAMILY.name else 151_646)
        )
        ids = torch.tensor([[*before, *[mark] * config.tokens_of_window(samples), *after]])
        given = {"input_ids": ids, "input_features": torch.from_numpy(mel), "attention_mask": torch.ones_like(ids)}
        if family == qwen2_audio.FAMILY.name:
            frames = torch.arange(mel.shape[-1])[None] < -(-samples // HOP_LENGTH)
            cls = transformers.Qwen2AudioForConditionalGeneration
            return (
                cls.from_pretrained(folder, dtype=kind)
                .eval()(**given, feature_attention_mask=frames.long())
                .logits[0, -1]
                .numpy()
            )
        cls = transformers.VoxtralForConditionalGeneration
        return cls.from_pretrained(folder, dtype=kind).eval()(**given).logits[0, -1].numpy()
