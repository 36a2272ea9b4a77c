"""`python -m recipes.order_desk.make_example`: speak the example recording that the page ships, and its right answers.

Text-to-speech of our own making: an order desk with several voices, somewhat over five minutes.
"""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import numpy as np
import soundfile as sf

from recipes.order_desk.corpus import Clip
from recipes.order_desk.grammar import DIGIT_WORDS, NOT_MENTIONED, sample_slots, words_of
from recipes.order_desk.recordings import build_recording
from recipes.order_desk.tts import Voice, speak
from speech_xl.config import SAMPLING_RATE

FOLDER = Path(__file__).parents[2] / "space" / "examples"
SEED, NUMBERED, PLAIN = 2026, 36, 18
VOICES = (
    Voice("flite", "slt", 150, 175, 0, 1.0),
    Voice("flite", "rms", 150, 100, 0, 1.0),
    Voice("flite", "awb", 145, 110, 0, 1.0),
    Voice("espeak-ng", "en-us+f3", 140, 50, 2, 1.0),
    Voice("espeak-ng", "en-gb+m3", 145, 45, 2, 1.0),
)


def clip(words: list[str], voice: Voice, slots: dict[str, str] | None = None, digit: int | None = None) -> Clip:
    """Spoken words at half of full scale, with what they mean."""
    samples = speak(" ".join(words), voice)
    samples = (samples * (16384 / np.abs(samples).max())).astype(np.int16)
    return Clip(samples, tuple(words), slots, digit, speaker=voice.name, source="tts", name=" ".join(words))


def main() -> None:
    """Write the example recording and its questions into space/examples."""
    rng = random.Random(SEED)
    orders = []
    for i in range(NUMBERED + PLAIN):
        slots = sample_slots(rng)
        orders.append(clip(words_of(slots, rng), VOICES[i % len(VOICES)], slots=slots))
    digits = [clip([word], voice, digit=d) for voice in VOICES[:2] for d, word in enumerate(DIGIT_WORDS)]
    recording = build_recording(orders, digits, NUMBERED, PLAIN, SEED)
    FOLDER.mkdir(exist_ok=True)
    wav, ogg = FOLDER / "order_desk.wav", FOLDER / "order_desk.ogg"
    sf.write(wav, recording.samples, SAMPLING_RATE)
    encode = ["ffmpeg", "-y", "-loglevel", "error", "-i", str(wav), "-c:a", "libvorbis", "-q:a", "1", str(ogg)]
    subprocess.run(encode, check=True)
    wav.unlink()
    asked = [q for q in recording.questions if q.answer != NOT_MENTIONED]
    suggestions = [rng.choice([q for q in asked if q.slot == slot]).text for slot in sorted({q.slot for q in asked})]
    document = {
        "title": "An order desk, five voices",
        "seconds": round(len(recording.samples) / SAMPLING_RATE, 1),
        "suggestions": suggestions,
        "orders": [
            {
                "number": number,
                "start": round(q.start, 2),
                "end": round(q.end, 2),
                "slots": {q.slot: q.answer for q in recording.questions if q.number == number},
            }
            for number, q in {q.number: q for q in recording.questions}.items()
        ],
    }
    (FOLDER / "order_desk.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{ogg}: {document['seconds']} s, {ogg.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
