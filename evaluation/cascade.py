"""The cascade: transcribe a recording first, then let the same decoder read the text.

What most people do today, and what a memory of the sound has to be compared with. The words are those of the
checkpoint's own recogniser, Whisper's for instance; they stand as plain text where the memory would stand, and their
keys and values are what is counted in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.results import CASCADE
from speech_xl.decoders import SoundSource
from speech_xl.errors import CheckpointError
from speech_xl.front_end import Part
from speech_xl.memory import AudioMemory, RecordingSource
from speech_xl.model import SpeechModel
from speech_xl.prefetch import WindowReader
from speech_xl.recognition import Word
from speech_xl.schedule import FixedRatio, Scheduler
from speech_xl.word_reader import Earlier

PIECE = 256  # tokens of text that are read at once


def check_recognizer(model: SpeechModel) -> None:
    """CheckpointError unless the checkpoint has a recogniser, which the cascade transcribes with."""
    if model.config.recognizer is None:
        raise CheckpointError(
            f"The model {model.config.name} has no recogniser to transcribe with; leave out --cascade, or choose "
            "another model."
        )


def recognize(model: SpeechModel, audio: Path | SoundSource) -> tuple[list[Word], RecordingSource]:
    """Every word of a recording with its seconds; the decoder is not used."""
    words: list[Word] = []
    seconds = 0.0
    reader = WindowReader(audio, model.config)
    earlier = Earlier()
    try:
        with model.lock:
            state = model.backend.start([])  # where the front end queues its tokens; nobody takes them up
        for group in reader:
            with model.lock:
                (heard,) = model.front_end.hear([Part(state, group, earlier)])
            words += [word for _, word in heard.words or ()]
            seconds = heard.seconds
    finally:
        reader.close()
    return words, RecordingSource(audio.name, reader.info.seconds, round(seconds, 3), reader.sha256)


def read_as_text(model: SpeechModel, words: Sequence[Word], recording: RecordingSource) -> AudioMemory:
    """A memory whose prefix ends with the recording's words as text, and which has no slots: no evidence comes of it.

    The text is read in pieces that are kept raw, which is the same as in one, in a time and memory that hours allow.
    """
    before, text = model.prompt.prefix_ids, model.prompt.text_ids(" ".join(word.text for word in words))
    ids = (*before, *text)
    with model.lock:
        state = model.backend.start(list(before))
        if text:
            model.backend.hear_words(state, text)
        for plan in Scheduler(PIECE, FixedRatio(None), len(before)).plan_all(len(text)):
            model.backend.close_intervals([(state, [plan])])
        size = model.backend.memory_bytes(state)
    return AudioMemory(
        state=state,
        spans=np.zeros((0, 2), np.int64),
        times=np.zeros((0, 2), np.float32),
        ratios=(),
        interval=model.interval,
        prefix=ids,
        recording=recording,
        model=model.config.name,
        fingerprint=model.fingerprint,
        summarizer=CASCADE.name,
        bytes=size,
    )


def words_between(words: Sequence[Word], span: tuple[float, float] | None) -> str:
    """The words, or those that overlap a span of seconds, as one text."""
    return " ".join(w.text for w in words if span is None or (w.start < span[1] and w.end > span[0]))
