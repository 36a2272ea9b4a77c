"""Text-to-speech with many voices, from the two engines a Linux system offers: espeak-ng and flite.

Variety is the point, not beauty: engine, accent, timbre, rate, pitch and vocal-tract length are all drawn at
random. The same voice and text give the same samples. It knows no grammar, no cache and no model.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

import numpy as np
import soxr

from speech_xl.errors import SpeechXLError

RATE = 16000  # Hz, of everything that leaves this file
FRAME = RATE // 50  # samples in 20 ms, the window in which loudness is measured

# Names in Debian's espeak-ng; where a version lacks one, it speaks in its plain voice instead.
ESPEAK_ACCENTS = (
    "en-us",
    "en-us",
    "en-us",
    "en-us-nyc",
    "en-gb",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)
# Whispers and robots are left out: nobody orders coffee like that.
ESPEAK_TIMBRES = (
    "",
    "m1",
    "m2",
    "m3",
    "m4",
    "m5",
    "m6",
    "m7",
    "m8",
    "f1",
    "f2",
    "f3",
    "f4",
    "f5",
    "croak",
    "klatt",
    "klatt2",
    "klatt3",
    "klatt4",
    "Alex",
    "Alicia",
    "Andrea",
    "Andy",
    "Annie",
    "Denis",
    "Diogo",
    "Gene",
    "Gene2",
    "Hugo",
    "Jacky",
    "Lee",
    "Marco",
    "Mario",
    "Michael",
    "Mike",
    "adam",
    "anika",
    "antonio",
    "aunty",
    "belinda",
    "benjamin",
    "boris",
    "david",
    "ed",
    "edward",
    "grandma",
    "grandpa",
    "iven",
    "john",
    "linda",
    "max",
    "michel",
    "miguel",
    "paul",
    "pedro",
    "quincy",
    "rob",
    "robert",
    "sandro",
    "shelby",
    "steph",
    "steph2",
    "travis",
    "victor",
    "zac",
)
FLITE_VOICES = {"kal16": 105, "awb": 130, "rms": 95, "slt": 170}  # name -> natural mean pitch in Hz


class VoiceError(SpeechXLError):
    """No text-to-speech engine is installed, or it refused to speak."""


@dataclass(frozen=True)
class Voice:
    """One way of speaking."""

    engine: str  # "espeak-ng" or "flite"
    name: str  # the engine's own name, such as "en-us+f2" or "slt"
    speed: int  # words a minute
    pitch: int  # espeak-ng: 0..99; flite: mean fundamental frequency in Hz
    word_gap: int  # espeak-ng: extra pause between words, in 10 ms
    tract: float  # > 1: shorter vocal tract; formants and pitch rise by this factor, the rate stays


@cache
def engines() -> tuple[str, ...]:
    """The engines that are installed here."""
    found = tuple(name for name in ("espeak-ng", "flite") if shutil.which(name))
    if not found:
        raise VoiceError("No text-to-speech engine is installed: run `apt install espeak-ng flite`.")
    return found


def sample_voice(rng: random.Random) -> Voice:
    """A random voice; flite's four sound the most human, so they get a third of the draws."""
    engine = rng.choices(engines(), weights=(2, 1)[: len(engines())])[0]
    speed, tract = rng.randint(110, 220), round(rng.uniform(0.87, 1.17), 3)
    if engine == "flite":
        name = rng.choice(tuple(FLITE_VOICES))
        return Voice(engine, name, speed, int(FLITE_VOICES[name] * rng.uniform(0.8, 1.25)), 0, tract)
    accent, timbre = rng.choice(ESPEAK_ACCENTS), rng.choice(ESPEAK_TIMBRES)
    name = f"{accent}+{timbre}" if timbre else accent
    word_gap = rng.choice((0, 0, 0, 0, 1, 2, 4, 8))
    return Voice(engine, name, speed, rng.randint(20, 80), word_gap, tract)


def speak(text: str, voice: Voice) -> np.ndarray:
    """Speak `text` -> (n,) float32 at 16 kHz in [-1, 1], silence at both ends trimmed."""
    # The resampling that follows also speeds speech up by `tract`, so the engine is asked for less.
    speed = voice.speed / voice.tract
    if voice.engine == "flite":
        stretch = 165 / speed  # flite's own rate is about 165 words a minute
        command = ["flite", "-voice", voice.name, "--setf", f"duration_stretch={stretch:.3f}"]
        command += ["--setf", f"int_f0_target_mean={voice.pitch}", "-t", text, "-o", "/dev/stdout"]
    else:
        command = ["espeak-ng", "-v", voice.name, "-s", str(max(80, round(speed))), "-p", str(voice.pitch)]
        command += ["-g", str(voice.word_gap), "--stdout", text]
    try:
        # A pipe, not a path: text never becomes a shell line, and nothing is left behind when killed.
        wav = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except FileNotFoundError:
        raise VoiceError(f"{voice.engine} is not installed: run `apt install espeak-ng flite`.") from None
    except subprocess.CalledProcessError as failure:
        reason = failure.stderr.decode(errors="replace").strip()
        raise VoiceError(f"{voice.engine} cannot speak as {voice.name}: {reason}") from None
    if len(wav) <= 44:
        raise VoiceError(f"{voice.engine} said nothing for {text!r} as {voice.name}.")
    # Both write the plain 44-byte header; espeak-ng's length field is wrong in a pipe, so it is not read.
    rate = int.from_bytes(wav[24:28], "little")
    samples = np.frombuffer(wav[44 : len(wav) // 2 * 2], "<i2").astype(np.float32) / 32768
    samples = soxr.resample(samples, rate * voice.tract, RATE)
    return trim_silence(np.clip(samples, -1, 1))


def trim_silence(samples: np.ndarray, margin_seconds: float = 0.08) -> np.ndarray:
    """Cut leading and trailing silence -> a view of `samples` (n,) float32 at 16 kHz.

    Rather keeps noise than cuts speech: a 20 ms frame counts as speech from 38 dB below the clip's loud
    level on; over a noisy background the bar rises to twice the background, never above -26 dB.
    """
    count = 2 * len(samples) // FRAME - 1
    if count < 8:
        return samples
    halves = (samples[: (count + 1) * FRAME // 2].reshape(-1, FRAME // 2) ** 2).mean(1)
    level = np.sqrt((halves[:-1] + halves[1:]) / 2)  # (count,) one every 10 ms
    loud = np.percentile(level, 95)
    bar = np.clip(2 * np.percentile(level, 10), loud * 10 ** (-38 / 20), loud * 10 ** (-26 / 20))
    # Four frames in a row (50 ms): a mouse click at either end is shorter than any word.
    spoken = np.convolve(level > bar, np.ones(4, int), "valid") == 4
    if not spoken.any():
        return samples
    first, last = np.flatnonzero(spoken)[[0, -1]]
    start = first * FRAME // 2 - int(margin_seconds * RATE)
    stop = (last + 5) * FRAME // 2 + int(margin_seconds * RATE)
    return samples[max(0, start) : stop]
