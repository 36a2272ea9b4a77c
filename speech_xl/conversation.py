"""The one way in: a recording becomes a memory, and a memory answers questions.

Listening is listening.py's, of several recordings at once listening_together.py's. It knows no framework and no user interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speech_xl.asking import Answer, Asking, tell_together
from speech_xl.heard import Heard
from speech_xl.listening import Listening
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel
from speech_xl.prompt import LONGEST_ANSWER
from speech_xl.sampling import GREEDY, Sampling
from speech_xl.slices import check_said

__all__ = ["Heard", "Listening", "ask", "ask_together"]


def ask(
    model: SpeechModel,
    memory: AudioMemory,
    question: str,
    longest: int = LONGEST_ANSWER,
    start: float | None = None,
    end: float | None = None,
    stop: Sequence[str] = (),
    sampling: Sampling = GREEDY,
) -> Asking:
    """Ask one question about a memory, or about [start, end] seconds of it alone; QuestionError at once if it cannot be
    asked. The answer ends before the first text of `stop`; its tokens are the most probable ones unless `sampling` says
    otherwise.
    """
    span = None if start is None and end is None else check_said(memory, start, end)
    return Asking(model, memory, question, longest, span, stop, sampling)


def ask_together(
    model: SpeechModel,
    memory: AudioMemory,
    questions: Sequence[str],
    longest: int = LONGEST_ANSWER,
    start: float | None = None,
    end: float | None = None,
    stop: Sequence[str] = (),
) -> Iterator[Answer]:
    """Ask several questions about one memory, in batches that share it -> their answers, in order.

    Each is the answer that `ask` gives to the question alone, greedy and whole; several take little longer than one.
    QuestionError at once if any of them cannot be asked. The model's lock is
    free between tokens, so that others are served meanwhile.
    """
    span = None if start is None and end is None else check_said(memory, start, end)
    return tell_together([Asking(model, memory, question, longest, span, stop) for question in questions])
