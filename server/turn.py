"""One question of one client: from the body of a request to the pieces of an answer.

It knows questions and answers; the shapes in which these are sent are chat.py's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import IO

from server import remote
from server.fields import ChatRequest, InputAudioPart
from server.job import Job
from server.messages import Conversation, conversation_of
from server.recordings import Recording, from_data_url, from_input_audio
from server.service import Service
from speech_xl.asking import Answer
from speech_xl.conversation import ask
from speech_xl.memory import AudioMemory
from speech_xl.prompt import LONGEST_ANSWER

Source = Recording | str | None  # a file, the http(s) address of one, or nothing but a memory's id


def read_request(service: Service, body: IO[bytes]) -> tuple[ChatRequest, Conversation, Source]:
    """Blocking. What is asked, and the recording as a file; the base64 that it came in is let go."""
    asked = ChatRequest.model_validate_json(body.read())
    service.check_model(asked.model)
    conversation = conversation_of(asked.messages)
    service.model.prompt.question_ids(conversation.question)  # one that cannot be asked is refused before the audio
    asked.messages.clear()
    audio, limit = conversation.audio, service.settings.upload_bytes
    conversation = dataclasses.replace(conversation, audio=None)
    if isinstance(audio, InputAudioPart):
        return asked, conversation, from_input_audio(audio.input_audio.data, audio.input_audio.format, limit)
    return asked, conversation, None if audio is None else source_of(audio.audio_url.url, limit)


def source_of(url: str, limit: int) -> Source:
    """Blocking. What is at a data: URL; any other one is left to `open_source`."""
    return from_data_url(url, limit) if url[:5].lower() == "data:" else url


async def open_source(service: Service, source: Source) -> Recording | None:
    """The recording as a file, fetched where it lies elsewhere and the server's settings allow that."""
    if isinstance(source, str):
        return await remote.fetch(source, service.settings.audio_urls, service.settings.upload_bytes)
    return source


class Turn:
    """`open`, then iterate `pieces`, once each; `job` ends it."""

    def __init__(self, service: Service, owner: str, asked: ChatRequest, conversation: Conversation):
        self._service, self._asked, self._conversation = service, asked, conversation
        self.job = Job(service, owner, asked.speech_xl)
        self.question_tokens = len(service.model.prompt.question_ids(conversation.question))

    async def open(self, source: Source) -> None:
        """Everything that can be refused before something is heard or said."""
        await self.job.open(await open_source(self._service, source))

    async def pieces(self) -> AsyncIterator[str | Answer]:
        """Pieces of the answer's text, then the whole Answer; before them the recording is heard, if need be."""
        async for piece in self.job.results(self._answer):
            if isinstance(piece, Answer):
                self._service.metrics.answer_tokens.inc(piece.tokens)
            yield piece

    def _answer(self, memory: AudioMemory) -> Iterator[str | Answer]:
        model, span = self._service.model, self._asked.speech_xl.span
        longest = self._asked.max_completion_tokens or self._asked.max_tokens or LONGEST_ANSWER
        longest = min(longest, self._service.settings.longest_answer)
        asking = ask(
            model, memory, self._conversation.question, longest, *span, self._asked.stop or (), self._asked.sampling
        )
        yield from asking
        yield asking.answer

    def warnings(self, answer: Answer) -> list[str]:
        """A sentence each: about the messages, the recording, and this answer."""
        kept = self.job.kept
        said = (*self._conversation.warnings, *kept.warnings, *kept.memory.warnings, *answer.warnings)
        return list(dict.fromkeys(said))
