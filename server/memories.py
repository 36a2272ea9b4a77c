"""/v1/memories: hear a recording in advance or send a .sxl file; list, describe, download and delete one's own."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, Response

from server.bodies import form_body
from server.errors import ApiError
from server.fields import FileRequest
from server.job import Job
from server.library import no_memory
from server.recordings import file_of
from server.service import Service, owner_of, service_of
from server.store import Entry
from server.workers import while_connected
from speech_xl.memory import ratio_in_words

router = APIRouter(prefix="/v1/memories")
Serving = Annotated[Service, Depends(service_of)]
Owner = Annotated[str, Depends(owner_of)]


@router.post("")
async def create(request: Request, service: Serving, owner: Owner) -> dict[str, Any]:
    """Answer POST /v1/memories: hear a file or take in a .sxl file, and keep it."""
    async with form_body(request, service.settings.upload_bytes) as form:
        extras = FileRequest.of_form(form).speech_xl
        if extras.memory is not None or extras.span != (None, None):
            raise ApiError(
                400, "A memory is of a whole file; send it with a ratio or memory_budget at most.", "invalid_value"
            )
        file = await file_of(form, service.settings.upload_bytes)
    job = Job(service, owner, extras)
    try:
        await while_connected(request, job.open(file))
        kept = await while_connected(request, job.memory())
    finally:
        job.close()
    if kept.id is None:
        raise ApiError(507, kept.warnings[0], "no_space")
    return describe(service, service.library.entry(owner, kept.id))


@router.get("")
def list_all(service: Serving, owner: Owner) -> dict[str, Any]:
    """Answer GET /v1/memories: those of the caller's key."""
    entries = service.library.store.entries(owner)
    return {"object": "list", "data": [describe(service, entry) for entry in entries], "has_more": False}


@router.get("/{identifier}")
def describe_one(identifier: str, service: Serving, owner: Owner) -> dict[str, Any]:
    """Answer GET /v1/memories/ID."""
    return describe(service, service.library.entry(owner, identifier))


@router.get("/{identifier}/content")
def download(identifier: str, service: Serving, owner: Owner) -> Response:
    """Answer GET /v1/memories/ID/content with the .sxl file."""
    entry = service.library.entry(owner, identifier)
    path = service.library.store.path(owner, identifier)
    if path is None:
        raise no_memory()
    name = f"{entry.header.recording.path.rpartition('.')[0] or 'memory'}.sxl"
    return FileResponse(path, media_type="application/octet-stream", filename=name)


@router.delete("/{identifier}")
def delete(identifier: str, service: Serving, owner: Owner) -> dict[str, Any]:
    """Answer DELETE /v1/memories/ID."""
    service.library.delete(owner, identifier)
    return {"id": identifier, "object": "memory", "deleted": True}


def describe(service: Service, entry: Entry) -> dict[str, Any]:
    """A memory as clients see it. `usable`: the model that is loaded can be asked about it."""
    header, source = entry.header, entry.header.recording
    return {
        "id": entry.id,
        "object": "memory",
        "created_at": entry.created,
        "bytes": entry.bytes,
        "filename": source.path,
        "sha256": source.sha256,
        "seconds_heard": source.seconds_heard,
        "model": header.model,
        "usable": header.fingerprint == service.model.fingerprint,
        "ratio": ratio_in_words(header.ratios),
        "summarizer": header.summarizer,
        "speech_tokens": header.tokens,
        "slots": header.slots,
        "warnings": list(header.warnings),
    }
