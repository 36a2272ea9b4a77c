"""What is fuzzed: readers of files and bodies, each with seeds that are right and a way to change them.

A target's `feed` gets bytes and may raise a SpeechXLError; whatever else it raises is a finding. It knows nothing of how
bytes are made up.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from reliability.mutations import Mutate, mutate_body, mutate_json, mutate_safetensors
from tests.tiny import save_checkpoint, sound, tiny_config, tiny_recognizer_config, write_sound

LONGEST_SECONDS = 4 * 3600  # of a recording that is read: small files may hold days of silence
LARGEST_WEIGHTS = 2**24  # numbers of a checkpoint that is loaded: what fits its own configuration is no damage
BOUNDARY = "0123456789abcdef"


@dataclass(frozen=True)
class Target:
    """What is fed with bytes, and the inputs to begin with."""

    seeds: list[bytes]
    feed: Callable[[bytes], None]
    mutate: Mutate | None = None  # beside the fuzzer's own changes of bytes
    words: tuple[str, ...] = ()  # that the fuzzer may put anywhere


def _file(folder: Path, name: str) -> Callable[[bytes], Path]:
    folder.mkdir(parents=True, exist_ok=True)

    def write(data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def audio(folder: Path) -> Target:
    """Whatever libsndfile opens; ffmpeg is not found."""
    os.environ["PATH"] = ""
    return _audio(folder)


def _audio(folder: Path) -> Target:
    from speech_xl.audio import AudioReader
    from speech_xl.config import SAMPLING_RATE
    from speech_xl.describe import describe_recording

    write = _file(folder, "input")

    def feed(data: bytes) -> None:
        path = write(data)
        describe_recording(path)
        with AudioReader(path) as reader:
            for block in reader:
                assert np.isfinite(block).all() and block.dtype == np.float32 and block.ndim == 1
                if reader.samples_read > LONGEST_SECONDS * SAMPLING_RATE:
                    break

    seeds = []
    for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64", "NIST"):
        for rate, channels in ((16_000, 1), (44_100, 2)):
            samples = np.tile(sound(0.3, rate=rate)[:, None], channels)
            made = io.BytesIO()
            sf.write(made, samples, rate, format=kind)
            seeds.append(made.getvalue())
    seeds += [seeds[4] * 2, seeds[6] * 2, seeds[0][:6000], b""]  # joined, cut off
    return Target(
        seeds, feed, words=("RIFF", "WAVE", "fmt ", "data", "OggS", "fLaC", "ID3", "Xing", "FORM", "COMM", "ds64")
    )


def video(folder: Path) -> Target:
    """What libsndfile does not open, through ffmpeg: a process for each input."""
    import subprocess

    target = _audio(folder)
    wav = write_sound(folder / "seed.wav", 0.3)
    seeds = []
    for suffix in ("m4a", "mp4", "webm", "mkv", "aac", "amr", "avi"):
        made = folder / f"seed.{suffix}"
        command = ["ffmpeg", "-nostdin", "-v", "quiet", "-y", "-i", str(wav), "-ac", "1", "-ar", "8000", str(made)]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 0:  # some builds lack an encoder
            seeds.append(made.read_bytes())
    return Target(seeds, target.feed, words=("ftyp", "moov", "mdat", "stsd", "mp4a", "esds"))


def sxl(folder: Path) -> Target:
    """Memory files, and a question where one can be read."""
    from speech_xl.conversation import Listening, ask
    from speech_xl.describe import describe_memory
    from speech_xl.memory import load_memory, save_memory
    from speech_xl.model import SpeechModel

    model = SpeechModel.load(str(save_checkpoint(folder / "tiny", tiny_config())), "torch")
    write = _file(folder, "input.sxl")
    seeds = []
    for ratio in (None, 4):
        listening = Listening(model, write_sound(folder / "talk.wav", 2.0), ratio)
        for _ in listening:
            pass
        save_memory(listening.memory, folder / "seed.sxl", model)
        seeds.append((folder / "seed.sxl").read_bytes())

    def feed(data: bytes) -> None:
        path = write(data)
        describe_memory(path)
        memory = load_memory(path, model)
        for _ in ask(model, memory, "what is order 4?", 2):
            pass

    return Target(seeds, feed, mutate_safetensors)


def config(folder: Path) -> Target:
    """A checkpoint's config.json, with base parts and without, and the checkpoint where it fits its weights."""
    import math

    from speech_xl.checkpoints import SHIPPED, expected_tensors
    from speech_xl.config_file import load_config
    from speech_xl.describe import describe_checkpoint
    from speech_xl.model import SpeechModel

    folders = [
        save_checkpoint(folder / "tiny", tiny_config()),
        save_checkpoint(folder / "words", tiny_recognizer_config()),
    ]
    seeds = [(path / "config.json").read_bytes() for path in folders]

    def feed(data: bytes) -> None:
        path = folders[b'"recognizer": {' in data]
        (path / "config.json").write_bytes(data)
        found = load_config(path)
        if not found.parts and sum(map(math.prod, expected_tensors(found).values())) < LARGEST_WEIGHTS:
            describe_checkpoint(path)
            SpeechModel.load(str(path), "torch")

    return Target([*seeds, (SHIPPED / "small" / "config.json").read_bytes()], feed, mutate_json)


def foreign(folder: Path) -> Target:
    """The config.json of a published model that is to be converted."""
    from converters.plan import make_plan
    from converters.target import Options
    from tests import families

    sources = {name: getattr(families, name)(folder / name) for name in ("qwen2_audio", "voxtral", "whisper")}
    decoder = families.qwen2(folder / "qwen2")
    seeds = [(path / "config.json").read_bytes() for path in sources.values()]

    def feed(data: bytes) -> None:
        name = next((name for name in sources if f'"{name}"'.encode() in data), "qwen2_audio")
        (sources[name] / "config.json").write_bytes(data)
        make_plan(sources[name], decoder if name == "whisper" else None, Options(with_sst=True))

    return Target(seeds, feed, mutate_json)


def safetensors(folder: Path) -> Target:
    """Weight files: their headers, and every tensor where they can be read."""
    from safetensors.torch import save

    from converters.source import tensors_of
    from speech_xl.checkpoints import stored_shapes
    from tests.tiny import tiny_model

    write = _file(folder, "model.safetensors")
    state = tiny_model(tiny_config()).state_dict()
    small = {name: tensor.contiguous() for name, tensor in list(state.items())[:5]}

    def feed(data: bytes) -> None:
        path = write(data)
        for stored in tensors_of(path.parent).values():
            for _ in stored.pieces():
                pass
        stored_shapes(path.parent)

    return Target([save(small), save(small, {"format": "pt"})], feed, mutate_safetensors)


def gguf(folder: Path) -> Target:
    """A GGUF decoder that is joined to a Whisper model."""
    from converters.plan import make_plan
    from converters.target import Options
    from tests import families, published

    whisper = families.whisper(folder / "whisper")
    write = _file(folder, "input.gguf")
    model = published.llama_model()
    seeds = [published.write_gguf(folder / "seed.gguf", model, kind).read_bytes() for kind in ("F32", "Q8_0")]

    def feed(data: bytes) -> None:
        for recipe in make_plan(whisper, write(data), Options()).recipes:
            for _ in recipe.pieces():
                pass

    words = ("general.architecture", "llama.block_count", "tokenizer.ggml.tokens", "token_embd.weight", "GGUF")
    return Target(seeds, feed, words=words)


def bodies(folder: Path) -> Target:
    """Requests to the server: the first line is the address, the rest JSON or a form."""
    from server.app import build_app
    from server.settings import Settings
    from speech_xl.model import SpeechModel
    from tests.serving import input_audio, messages, talk

    model = SpeechModel.load(str(save_checkpoint(folder / "tiny", tiny_config())), "torch")
    app = build_app(model, Settings(store=folder / "store", longest_answer=4))
    loop = asyncio.new_event_loop()
    recording = talk(0.5)
    chat = {"model": "tiny", "max_tokens": 2, "temperature": 0, "stop": ["x"], "speech_xl": {"ratio": 4, "from": 0}}
    asked = messages("what is order 4?", input_audio(recording))
    history = [{"role": "system", "content": "be brief"}, *asked, {"role": "assistant", "content": "a"}, *messages("b")]
    seeds = [json.dumps(chat | more).encode() for more in ({"messages": asked}, {"messages": history, "stream": True})]
    seeds = [b"/v1/chat/completions\n" + seed for seed in seeds]
    fields = {"model": "tiny", "response_format": "verbose_json", "speech_xl[ratio]": "4"}
    seeds += [b"/v1/audio/transcriptions\n" + form(recording, fields), b"/v1/memories\n" + form(recording, {})]

    def feed(data: bytes) -> None:
        line, _, body = data.partition(b"\n")
        path = line.decode("latin-1") if line.startswith(b"/v1/") else "/v1/chat/completions"
        is_form = body.startswith(b"--")
        kind = f"multipart/form-data; boundary={BOUNDARY}" if is_form else "application/json"
        status = loop.run_until_complete(asyncio.wait_for(post(app, path, kind, body), 60))
        assert status < 500, f"status {status}"

    return Target(seeds, feed, mutate_body)


def form(file: bytes, fields: dict[str, str]) -> bytes:
    """The body of a form with a file and some fields."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="talk.wav"\r\n\r\n'
    return b"".join([*parts, head.encode(), file, f"\r\n--{BOUNDARY}--\r\n".encode()])


async def post(app: Callable, path: str, kind: str, body: bytes) -> int:
    """Send one request to an ASGI application -> its status, once all of the answer came."""
    sent: Iterator[dict] = iter([{"type": "http.request", "body": body, "more_body": False}])
    status = 0

    async def receive() -> dict:
        if (message := next(sent, None)) is None:
            await asyncio.Event().wait()  # a client that stays
        return message or {}

    async def send(message: dict) -> None:
        nonlocal status
        status = message.get("status", status)

    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("latin-1", "replace"),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return status


TARGETS: dict[str, Callable[[Path], Target]] = {
    "audio": audio,
    "video": video,
    "sxl": sxl,
    "config": config,
    "foreign": foreign,
    "safetensors": safetensors,
    "gguf": gguf,
    "bodies": bodies,
}
