"""Hostile names and files. A file's maker writes it into a folder and says which commands read it, and how these may end."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

NAMES = (
    "two\nlines.wav",
    "-o.wav",
    "--help",
    "é日🎙\ufe0f.wav",
    "a" * 251 + ".wav",
    "語" * 83 + ".wav",
    " .wav",
    "...wav",
    "<img src=x onerror=alert(1)>.wav",
    "%s%n{0}{question}.wav",
    os.fsdecode(b"\xff\xfe.wav"),
    "a:b|c.wav",
    "\x1b[31mred.wav",
    "$(touch canary).wav",
    ";touch canary;.wav",
    "`touch canary`.wav",
    "\u202egnp.wav",
    "a.wav.sxl.wav",
    "\r.wav",
    "'\".wav",
    "file:talk.wav",
    "concat:talk.wav|talk.wav.wav",
    "*.wav",
    "[a].wav",
    "~.wav",
)
REFUSED, ANY = (2,), (0, 2)
Commands = Iterator[tuple[list[str], tuple[int, ...]]]
HOURS = 24
ONE_TENSOR = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


def _model(house: Any) -> list[str]:
    return ["--model", str(house.model), "--backend", "torch"]


def pickled_memory(at: Path, house: Any) -> Commands:
    """A memory that is a pickle which runs code."""
    path = at / "talk.sxl"
    path.write_bytes(pickle.dumps(Payload(at / "canary")))
    yield ["info", str(path)], REFUSED
    yield ["ask", str(path), "what?", *_model(house)], REFUSED


def pickled_recording(at: Path, house: Any) -> Commands:
    """A recording that is one."""
    path = at / "talk.wav"
    path.write_bytes(pickle.dumps(Payload(at / "canary")))
    yield ["listen", str(path), *_model(house)], REFUSED


def _checkpoint(at: Path, house: Any, weights: bytes | None, name: str = "model.safetensors") -> Path:
    folder = at / "model"
    folder.mkdir()
    for path in house.model.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    if weights is not None:
        (folder / name).write_bytes(weights)
    return folder


def pickled_weights(at: Path, house: Any) -> Commands:
    """A checkpoint whose weights are one."""
    folder = _checkpoint(at, house, pickle.dumps({"a": Payload(at / "canary")}))
    yield ["info", str(folder)], REFUSED
    yield ["listen", str(house.talk), "-o", str(at / "talk.sxl"), "--model", str(folder), "--backend", "torch"], REFUSED


def pickled_source(at: Path, house: Any) -> Commands:
    """As .bin files of published models are: a zip archive around a pickle, or a bare pickle."""
    folder = _checkpoint(at, house, pickle.dumps({"a": Payload(at / "canary")}), "pytorch_model.bin")
    yield ["convert", "--hf-path", str(folder), "--mlx-path", str(at / "out")], REFUSED
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Payload(at / "canary")}))
        archive.writestr("archive/version", "3")
    yield ["convert", "--hf-path", str(folder), "--mlx-path", str(at / "out")], REFUSED


def _safetensors(header: Any, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def boasting_weights(at: Path, house: Any) -> Commands:
    """Terabytes declared, none there."""
    folder = _checkpoint(at, house, _safetensors({"decoder.norm.weight": ONE_TENSOR}))
    yield ["info", str(folder)], REFUSED
    yield ["convert", "--hf-path", str(folder), "--mlx-path", str(at / "out")], REFUSED
    (folder / "model.safetensors").write_bytes(_safetensors({}, 2**62))
    yield ["info", str(folder)], REFUSED


def boasting_memory(at: Path, house: Any) -> Commands:
    """A memory of a year, in one kilobyte."""
    recording = {"path": "a", "seconds": None, "seconds_heard": 3e7, "sha256": ""}
    header = {
        "interval": 1,
        "ratios": [1],
        "tokens": 2**61,
        "prefix": [],
        "recording": recording,
        "model": "",
        "fingerprint": "",
        "summarizer": "sst",
        "warnings": [],
    }
    described = {"format": "speech-xl-memory", "version": "2", "header": json.dumps(header)}
    path = at / "talk.sxl"
    path.write_bytes(_safetensors({"__metadata__": described}))
    yield ["info", str(path)], REFUSED
    header |= {"interval": 2**61, "ratios": [1], "tokens": 2**61}
    described["header"] = json.dumps(header)
    path.write_bytes(_safetensors({"__metadata__": described}))
    yield ["info", str(path)], ANY
    yield ["ask", str(path), "what?", *_model(house)], REFUSED


def nested_configuration(at: Path, house: Any) -> Commands:
    """A config.json nested deeper than a parser can follow."""
    folder = _checkpoint(at, house, None)
    (folder / "config.json").write_text("[" * 200_000)
    yield ["info", str(folder)], REFUSED
    yield ["convert", "--hf-path", str(folder), "--mlx-path", str(at / "out")], REFUSED


def boasting_configuration(at: Path, house: Any) -> Commands:
    """A configuration that would take petabytes."""
    folder = _checkpoint(at, house, None)
    config = json.loads((folder / "config.json").read_text())
    config["decoder"] |= {"vocab_size": 2**40, "hidden_size": 2**30, "num_hidden_layers": 2**20}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((house.model / "model.safetensors").read_bytes())
    yield ["listen", str(house.talk), "-o", str(at / "talk.sxl"), "--model", str(folder), "--backend", "torch"], REFUSED


def silent_day(at: Path, house: Any) -> Commands:
    """A FLAC file of a day of silence, in some kilobytes: read at the pace of reading, in no more memory than any other."""
    path = at / "day.flac"
    with sf.SoundFile(path, "w", 1000, 1, "PCM_16") as file:
        for _ in range(HOURS):
            file.write(np.zeros(3600 * 1000, np.int16))
    yield ["info", str(path)], (0,)


def boasting_recordings(at: Path, house: Any) -> Commands:
    """Headers that claim days, with a second of sound behind them."""
    data = bytearray(house.talk.read_bytes())
    data[40:44] = struct.pack("<I", 2**32 - 1)
    (at / "boasting.wav").write_bytes(data)
    sf.write(at / "boasting.flac", np.zeros(16_000, np.float32), 16_000)
    data = bytearray((at / "boasting.flac").read_bytes())
    data[21] |= 0x0F  # STREAMINFO: the upper four of 36 bits that count samples
    data[22:26] = b"\xff\xff\xff\xff"
    (at / "boasting.flac").write_bytes(data)
    sf.write(at / "boasting.ogg", np.zeros(16_000, np.float32), 16_000)
    data = bytearray((at / "boasting.ogg").read_bytes())
    last = data.rindex(b"OggS")
    data[last + 6 : last + 14] = struct.pack("<q", 2**62)  # the position of its last sample
    (at / "boasting.ogg").write_bytes(data)
    for path in sorted(at.glob("boasting.*")):
        yield ["info", str(path)], ANY
        yield ["listen", str(path), "--memory-budget", "1MiB", *_model(house)], ANY
        yield ["listen", str(path), *_model(house)], ANY


def playlists(at: Path, house: Any) -> Commands:
    """Lists that would make ffmpeg read other files, or the network."""
    secret = house.talk
    texts = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "net.m3u8": "#EXTM3U\n#EXTINF:10.0,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
    }
    for name, text in texts.items():
        (at / name).write_text(text)
        yield ["info", str(at / name)], REFUSED


def links(at: Path, house: Any) -> Commands:
    """Links to files, to nothing, to themselves and to a device, and a pipe."""
    (at / "talk.wav").symlink_to(house.talk)
    (at / "gone.wav").symlink_to(at / "nowhere")
    (at / "loop.wav").symlink_to(at / "loop.wav")
    (at / "zero.wav").symlink_to("/dev/zero")
    os.mkfifo(at / "pipe.wav")
    yield ["listen", str(at / "talk.wav"), *_model(house)], (0,)
    for name in ("gone", "loop", "zero", "pipe"):
        yield ["info", str(at / f"{name}.wav")], REFUSED
        yield ["listen", str(at / f"{name}.wav"), *_model(house)], REFUSED
    (at / "precious.txt").write_text("years of work")
    (at / "out.sxl").symlink_to(at / "precious.txt")
    yield ["listen", str(house.talk), "-o", str(at / "out.sxl"), *_model(house)], (0,)
    if (at / "precious.txt").read_text() != "years of work":
        raise RuntimeError("a link's target was overwritten")
    (at / "around").symlink_to(at)
    yield ["batch", str(at), "--output", str(at / "batch"), *_model(house)], (0,)
    (at / "folder").symlink_to(at / "folder")
    yield ["batch", str(house.talk), "--output", str(at / "folder"), *_model(house)], REFUSED
    yield ["convert", "--hf-path", str(house.model), "--mlx-path", str(at / "folder")], REFUSED
    yield ["listen", str(house.talk), "-o", str(at / "folder" / "a.sxl"), *_model(house)], REFUSED


FILES: dict[str, Callable[[Path, Any], Commands]] = {
    "a pickle as a memory": pickled_memory,
    "a pickle as a recording": pickled_recording,
    "a pickle as weights": pickled_weights,
    "a pickle as a published model": pickled_source,
    "weights that boast": boasting_weights,
    "a memory that boasts": boasting_memory,
    "a configuration nested too deep": nested_configuration,
    "a configuration that boasts": boasting_configuration,
    "a day of silence": silent_day,
    "recordings that boast": boasting_recordings,
    "playlists": playlists,
    "links": links,
}
