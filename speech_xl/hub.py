"""The Hugging Face Hub: snapshots, single files, and one sentence for everything that can go wrong there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from speech_xl.errors import CheckpointError


def download(name: str, revision: str | None = None, **patterns: list[str]) -> Path:
    """The snapshot of a Hub id (resumed if broken off); CheckpointError says why there is none."""
    return _ask(name, revision, lambda client: client.snapshot_download(name, revision=revision, **patterns))


def download_file(name: str, file: str, revision: str | None = None) -> Path:
    """One file of a Hub id: from its cache without a word to the network, else downloaded (resumed if broken off)."""
    where = hub_client().try_to_load_from_cache(name, file, revision=revision)
    if isinstance(where, str):
        return Path(where)

    def get(client: ModuleType) -> str:
        if not client.constants.HF_HUB_OFFLINE:  # asked once: the download itself would ask a dead network for a minute
            client.get_hf_file_metadata(client.hf_hub_url(name, file, revision=revision))
        return str(client.hf_hub_download(name, file, revision=revision))

    return _ask(name, revision, get)


def _ask(name: str, revision: str | None, get: Callable[[ModuleType], str]) -> Path:
    client = hub_client()
    try:
        return Path(get(client))
    except client.errors.HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a valid Hub id ({error}).") from None
    except hub_errors() as error:
        raise CheckpointError(describe_hub_error(name, revision, error)) from None


def hub_client() -> ModuleType:
    """huggingface_hub, which reads HF_ENDPOINT when it is loaded; CheckpointError if that is no address at all."""
    import huggingface_hub.errors

    client: ModuleType = huggingface_hub
    try:
        _ = client.snapshot_download, client.HfApi  # loads the parts that talk
    except ValueError as error:
        raise CheckpointError(f"HF_ENDPOINT is no web address ({error}); correct it or unset it.") from None
    return client


def hub_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises for networks and answers of every kind; its own errors are OSErrors or HTTPErrors."""
    from huggingface_hub.utils import httpx  # the HTTP library of this version of the client, whatever its name

    strange_answers = (ValueError, LookupError, AssertionError, RuntimeError)
    return httpx.HTTPError, httpx.InvalidURL, OSError, *strange_answers


def describe_hub_error(name: str, revision: str | None, error: Exception) -> str:
    """Why there is no download of `name`, and what to do."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    if isinstance(error, errors.LocalEntryNotFoundError):
        if not isinstance(error.__cause__, errors.HfHubHTTPError):
            return f"{name} is not on this machine and the Hub cannot be reached; connect, or download it first."
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated; accept its terms on huggingface.co, run `hf auth login`, and try again."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision}; look at its commits on huggingface.co."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"The Hub has no {name}, or it is private; check the name or run `hf auth login`."
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return f"HF_ENDPOINT is no web address ({error}); correct it or unset it."
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status in (401, 403):
        return f"The Hub does not let this account read {name} ({status}); run `hf auth login` with one that may."
    if status == 404:
        return f"The Hub has no such file of {name}; look at it on huggingface.co."
    if status == 429:
        return f"The Hub had too many requests from here ({status}); run it again in some minutes, it continues."
    if status is not None:
        return f"The Hub did not answer about {name} ({status}); run it again later, it continues."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"The download of {name} broke off ({lines[0]}); run it again, it continues."
