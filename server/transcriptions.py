"""POST /v1/audio/transcriptions: what a recording says, read out of its memory, in OpenAI's shapes."""

from __future__ import annotations

import math
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from server.bodies import form_body
from server.fields import FileRequest
from server.job import Job
from server.recordings import file_of
from server.service import Service, owner_of, service_of
from server.streaming import EventStream
from server.workers import while_connected
from speech_xl.memory import AudioMemory
from speech_xl.transcript import Segment, text_lines, transcribe

router = APIRouter()
UNDETERMINED = "und"  # ISO 639's code for a language that nobody has determined


@router.post("/v1/audio/transcriptions")
async def write_down(
    request: Request, service: Annotated[Service, Depends(service_of)], owner: Annotated[str, Depends(owner_of)]
) -> Response:
    """Answer POST /v1/audio/transcriptions."""
    async with form_body(request, service.settings.upload_bytes) as form:
        asked = FileRequest.of_form(form)
        if asked.model is not None:  # there is one model, and it may be left unsaid
            service.check_model(asked.model)
        file = await file_of(form, service.settings.upload_bytes)
    job = Job(service, owner, asked.speech_xl)
    try:
        await while_connected(request, job.open(file))
        if not asked.stream:
            segments = await while_connected(request, all_segments(service, job, asked))
            return whole(service, asked, job.kept.memory, segments)
        await while_connected(request, job.begin())
    except BaseException:
        job.close()
        raise
    return EventStream(events(service, job, asked), job.close)


def segments_of(service: Service, job: Job, asked: FileRequest) -> AsyncIterator[Segment]:
    """The transcript of a job's memory, segment by segment as they are computed."""
    return job.results(lambda memory: transcribe(service.model, memory, *asked.speech_xl.span))


async def all_segments(service: Service, job: Job, asked: FileRequest) -> list[Segment]:
    """The same, when all are there."""
    return [segment async for segment in segments_of(service, job, asked)]


def whole(service: Service, asked: FileRequest, memory: AudioMemory, segments: list[Segment]) -> Response:
    """A finished transcript in the format that was asked for."""
    text, tokens = " ".join(s.text for s in segments), [service.model.prompt.text_ids(s.text) for s in segments]
    service.metrics.answer_tokens.inc(sum(map(len, tokens)))
    if asked.response_format == "text":
        return PlainTextResponse(text + "\n")
    if asked.response_format in ("srt", "vtt"):
        return PlainTextResponse("".join(f"{line}\n" for line in text_lines(segments, asked.response_format)))
    document: dict[str, Any] = {"text": text}
    if asked.response_format == "verbose_json":
        document |= {"task": "transcribe", "language": asked.language or UNDETERMINED, "duration": memory.seconds}
        document["segments"] = [
            verbose_segment(number, segment, ids)
            for number, (segment, ids) in enumerate(zip(segments, tokens, strict=True))
        ]
    return JSONResponse(document | {"usage": {"type": "duration", "seconds": math.ceil(memory.seconds)}})


def verbose_segment(number: int, segment: Segment, tokens: list[int]) -> dict[str, Any]:
    """With every field of OpenAI's. Two are not measured and say that nothing is wrong: avg_logprob, no_speech_prob."""
    packed = zlib.compress(segment.text.encode())
    return {
        "id": number,
        "seek": 0,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": tokens,
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "no_speech_prob": 0.0,
        "compression_ratio": round(len(segment.text.encode()) / len(packed), 3),
    }


async def events(service: Service, job: Job, asked: FileRequest) -> AsyncGenerator[dict[str, Any], None]:
    """A delta for each segment, with its times among our extras, and the whole text at the end."""
    said: list[str] = []
    tokens = 0
    async for segment in segments_of(service, job, asked):
        delta = f" {segment.text}" if said else segment.text
        said.append(segment.text)
        tokens += len(service.model.prompt.text_ids(segment.text))
        times = {"start": segment.start, "end": segment.end}
        yield {"type": "transcript.text.delta", "delta": delta, "speech_xl": times}
    service.metrics.answer_tokens.inc(tokens)
    slots = job.kept.memory.slots
    usage = {"type": "tokens", "input_tokens": slots, "output_tokens": tokens, "total_tokens": slots + tokens}
    extras = {"memory": job.kept.id, "reused": job.kept.reused}
    yield {"type": "transcript.text.done", "text": " ".join(said), "usage": usage, "speech_xl": extras}
