"""From a conversation's messages to one question about one recording.

A checkpoint's prompt has room for one question behind the memory, so the system text and earlier turns go before it as
text. It knows messages and characters; no model and no sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.errors import ApiError
from server.fields import AudioPart, ChatMessage
from speech_xl.prompt import LONGEST_QUESTION

LABELS = {"user": "Question", "assistant": "Answer"}


@dataclass(frozen=True)
class Conversation:
    """What the messages of a request come to."""

    question: str  # all that the model reads behind the memory
    audio: AudioPart | None  # the recording that it is about; None: there is none in the messages
    warnings: tuple[str, ...] = ()


def conversation_of(messages: Sequence[ChatMessage]) -> Conversation:
    """ApiError 400 if the last message asks nothing, or one message holds several recordings."""
    last = messages[-1]
    if last.role != "user":
        raise _refuse("The last message must be the user's; it asks the question.")
    if not last.text:
        raise _refuse("The last message has no text; write what you want to know about the recording.")
    for message in messages:
        if len(message.audio) > 1:
            raise _refuse("A message may hold one recording; ask about others in requests of their own.")
        if message.audio and message.role != "user":
            raise _refuse("Recordings belong in the user's messages.")
    audio = next((message.audio[0] for message in reversed(messages) if message.audio), None)
    system = "\n".join(m.text for m in messages if m.role in ("system", "developer") and m.text)
    turns = [m for m in messages[:-1] if m.role in LABELS and m.text]
    question, left_out = _joined(system, turns, last.text)
    warnings = (f"Earlier messages were left out, {left_out} of them: there is no room.",) if left_out else ()
    return Conversation(question, audio, warnings)


def _joined(system: str, turns: Sequence[ChatMessage], question: str) -> tuple[str, int]:
    """The system text, as many of the latest turns as there is room for, and the question -> text, turns left out."""
    head = f"{system}\n" if system else ""
    if len(head) + len(question) > LONGEST_QUESTION:
        raise _refuse(
            f"The system text and the last message have {len(head) + len(question)} characters; "
            f"{LONGEST_QUESTION} are read at most."
        )
    if not turns:
        return head + question, 0
    last = f"{LABELS['user']}: {question}"
    kept: list[str] = []
    room = LONGEST_QUESTION - len(head) - len(last)
    for turn in reversed(turns):
        line = f"{LABELS[turn.role]}: {turn.text}\n"
        if len(line) > room:
            break
        kept.insert(0, line)
        room -= len(line)
    return head + "".join(kept) + (last if kept else question), len(turns) - len(kept)


def _refuse(sentence: str) -> ApiError:
    return ApiError(400, sentence, "invalid_messages", "messages")
