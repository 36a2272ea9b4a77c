"""GET /v1/models, /health and /metrics: what runs here, whether it does, and how much."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.service import Service, owner_of, service_of

router = APIRouter()
Serving = Annotated[Service, Depends(service_of)]


@router.get("/v1/models", dependencies=[Depends(owner_of)])
def list_models(service: Serving) -> dict[str, Any]:
    """Answer GET /v1/models: there is one."""
    return {"object": "list", "data": [describe(service)]}


@router.get("/v1/models/{name:path}", dependencies=[Depends(owner_of)])
def describe_model(name: str, service: Serving) -> dict[str, Any]:
    """Answer GET /v1/models/NAME."""
    service.check_model(name)
    return describe(service)


def describe(service: Service) -> dict[str, Any]:
    """The model in OpenAI's shape; what it understands and at which ratios stands among our extras."""
    model = service.model
    ratios = ["raw", *map(str, sorted(model.ratios))]
    extras = {"description": model.config.description, "ratios": ratios, "fingerprint": model.fingerprint}
    made = int((model.folder / "config.json").stat().st_mtime)
    return {"id": model.config.name, "object": "model", "created": made, "owned_by": "speech-xl", "speech_xl": extras}


@router.get("/health")
def health(service: Serving) -> dict[str, Any]:
    """Needs no key, so that whoever restarts servers can ask."""
    return {"status": "ok", "model": service.model.config.name, "backend": service.model.backend.name}


@router.get("/metrics")
def metrics(service: Serving) -> Response:
    """In Prometheus' text format. Needs no key: it says how much is done, nothing of whose."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
