"""The Hugging Face Hub: a source's snapshot, and the upload of an output. It knows no format."""

from __future__ import annotations

from pathlib import Path

from converters.output import is_checkpoint
from speech_xl.checkpoints import find_folder, whole
from speech_xl.errors import CheckpointError, OutputError
from speech_xl.hub import download, hub_client, hub_errors

SAFE_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
MISTRALS_COPY = ["consolidated*", "original/*"]  # the same weights again, under other names


def fetch(name: str, revision: str | None = None) -> Path:
    """A folder or file, or the snapshot of a Hub id (resumed if broken off); CheckpointError says why there is none."""
    folder = find_folder(name)
    if folder is not None:
        return whole(folder) if is_checkpoint(folder) else folder  # ours may name base parts
    if name.lower().endswith((".gguf", ".bin")) and Path(name).expanduser().is_file():
        return Path(name).expanduser()
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(f"There is no folder {name!r}; name a folder or a Hub id owner/name.")
    path = download(name, revision, allow_patterns=SAFE_FILES, ignore_patterns=MISTRALS_COPY)
    if not list(path.glob("*.safetensors")):
        patterns = [*SAFE_FILES, "pytorch_model*.bin", "model.bin"]
        path = download(name, revision, allow_patterns=patterns, ignore_patterns=MISTRALS_COPY)
    return path


def upload(out: Path, repo: str) -> None:
    """Put a finished checkpoint into a repository of the Hub, made if it is new; OutputError if that fails."""
    try:
        api = hub_client().HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=str(out), repo_id=repo)
    except hub_errors() as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OutputError(f"{out} is complete but was not uploaded to {repo} ({reason}); try hf upload.") from None
