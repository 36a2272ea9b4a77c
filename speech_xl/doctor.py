"""`python -m speech_xl doctor`: whether this machine hears and answers as it should, and what to do if not.

It computes a model of a few thousand made-up weights on every installed backend and compares the numbers
with stored ones (reference.json, from the first backend on a CPU), then hears the shipped example with the chosen
backend. It knows backends by their protocol only. `python -m speech_xl.doctor` writes reference.json anew.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from speech_xl.backend import BACKENDS, choose_backend, install_hint, is_installed, load_backend
from speech_xl.checkpoints import EMBEDDED_FOLDER, expected_tensors
from speech_xl.config import AdapterConfig, DecoderConfig, EncoderConfig, ModelConfig, SSTConfig
from speech_xl.conversation import Listening, ask
from speech_xl.describe import machine_memory
from speech_xl.errors import SpeechXLError
from speech_xl.example import EXAMPLE, suggested_questions
from speech_xl.model import SpeechModel
from speech_xl.schedule import FixedRatio, Scheduler, format_bytes

REFERENCE = Path(__file__).with_name("reference.json")
TOLERANCE, TOLERANCE_16_BITS = 1e-3, 0.15  # the memory's numbers are of size 1
ANSWER_LENGTH = 8  # tokens
WANTED_SPEED = 2.0  # times real time; a CPU reaches many times this with the embedded model

PROBE = ModelConfig(
    encoder=EncoderConfig(
        num_mel_bins=80,
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        max_source_positions=96,
        context_positions=16,
    ),
    adapter=AdapterConfig(stack=4, hidden_size=24, bias=True),
    decoder=DecoderConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        rope_theta=10_000.0,
    ),
    sst=SSTConfig(interval=16, ratios=(4, 8), default_ratio=8),
    name="probe",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says what to do and is empty if all is well."""

    subject: str
    text: str
    advice: str = ""


def made_up(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers in [-0.5, 0.5) float32 that are the same on every machine, by a formula."""
    steps = np.arange(int(np.prod(shape)), dtype=np.float64)
    return ((np.sin(steps * 12.9898 + seed * 78.233) * 43758.5453) % 1 - 0.5).reshape(shape).astype(np.float32)


def write_probe(folder: Path) -> None:
    """The probe's weights, large enough that attention is far from uniform."""
    tensors = {}
    for seed, (name, shape) in enumerate(expected_tensors(PROBE).items()):
        is_scale = "norm" in name and name.endswith("weight")
        tensors[name] = np.ones(shape, np.float32) if is_scale else made_up(shape, seed)
    save_file(tensors, folder / "model.safetensors")


def compute_probe(name: str) -> tuple[dict[str, Any], int]:
    """-> ({"keys", "values", "tokens"} of two intervals and an answer on backend `name`, bytes per number)."""
    with tempfile.TemporaryDirectory() as folder:
        write_probe(Path(folder))
        backend = load_backend(name, Path(folder), PROBE)
    state, scheduler = backend.start([1]), Scheduler(16, FixedRatio(8), 1)
    backend.hear([(state, [16, 4])], 2 * made_up((2, 80, 192), 1000), np.array([96, 32]))
    for plan in scheduler.plan_all(20):
        backend.close_intervals([(state, [plan])])
    steps = backend.answer(state, [2, 3, 5], scheduler.base)
    found: dict[str, Any] = {"tokens": [next(steps).token for _ in range(ANSWER_LENGTH)]}
    steps.close()
    for part, array in backend.export_memory(state).items():
        found[part] = [round(float(x), 6) for x in np.asarray(array, np.float32).ravel()]
    return found, backend.itemsize


def check_machine() -> Iterator[Finding]:
    """The machine, its memory, and whether ffmpeg is there."""
    yield Finding("machine", f"{platform.system()} {platform.machine()}, {format_bytes(machine_memory())} of memory")
    if shutil.which("ffmpeg"):
        yield Finding("ffmpeg", "found")
    else:
        yield Finding(
            "ffmpeg", "not found", "M4A, MP4 and WebM need it: apt-get install ffmpeg, or brew install ffmpeg."
        )


def check_backends() -> Iterator[Finding]:
    """Every registered backend: its version, its numbers, and the library it wants."""
    for name in BACKENDS:
        if not is_installed(name):
            yield Finding(name, f"not installed; {install_hint(name)}")  # one backend is enough
            continue
        yield Finding(name, f"{importlib.metadata.version(BACKENDS[name].framework)} is installed")
        yield check_numbers(name)
        library = BACKENDS[name].library
        if library is not None and platform.system() == "Linux":
            try:
                ctypes.CDLL(library.file)
            except OSError:
                yield Finding(library.name, f"not found: {library.loss}", f"{library.install}.")


def check_numbers(name: str) -> Finding:
    """Parity with the stored values, see REFERENCE."""
    subject = f"{name}'s numbers"
    try:
        found, itemsize = compute_probe(name)
    except Exception as error:  # whatever a broken driver or package raises: that is what is examined here
        return Finding(subject, f"the backend does not run ({type(error).__name__}: {error})", install_hint(name) + ".")
    expected = json.loads(REFERENCE.read_text(encoding="utf-8"))
    apart = max(float(np.abs(np.subtract(found[part], expected[part])).max()) for part in ("keys", "values"))
    same = found["tokens"] == expected["tokens"]
    text = f"at most {apart:.1g} from the reference, {'the same' if same else 'other'} tokens"
    is_narrow = itemsize == 2
    if apart <= (TOLERANCE_16_BITS if is_narrow else TOLERANCE) and (same or is_narrow):
        return Finding(subject, text)
    return Finding(
        subject, text, f"Answers cannot be trusted: install the versions in requirements.txt ({install_hint(name)})."
    )


def check_example(model: str | None, backend: str) -> Iterator[Finding]:
    """Hear and ask the shipped example; `model` None is the embedded one."""
    chosen, reason = choose_backend(backend)
    if model is None and not (EMBEDDED_FOLDER / "config.json").is_file():
        yield Finding("embedded model", "not there", "Fetch checkpoints/nano, or train it (README), or give --model.")
        return
    loaded = SpeechModel.load(model, backend)
    yield Finding("backend", f"{chosen} on {loaded.backend.device}, because {reason}")
    listening = Listening(loaded, EXAMPLE)
    speed = 0.0
    for heard in listening:
        speed = heard.speed
    slow = "Close other programs; on a Mac, see that Python itself is built for arm64." if speed < WANTED_SPEED else ""
    size = format_bytes(listening.memory.bytes)
    yield Finding("listening", f"{listening.memory.seconds:.0f} s at {speed:.0f}x real time into {size}", slow)
    question = suggested_questions(loaded.config, EXAMPLE)[0]
    asking = ask(loaded, listening.memory, question)
    for _ in asking:
        pass
    yield Finding("answering", f"{question} {asking.answer.answer!r} in {asking.answer.seconds:.2f} s")


def examine(model: str | None = None, backend: str = "auto") -> Iterator[Finding]:
    """Every finding, as it is made."""
    yield from check_machine()
    yield from check_backends()
    try:
        yield from check_example(model, backend)
    except SpeechXLError as error:
        yield Finding("example", "could not be heard", str(error))


if __name__ == "__main__":
    REFERENCE.write_text(json.dumps(compute_probe(next(iter(BACKENDS)))[0]) + "\n", encoding="utf-8")
