"""The errors that a person can cause and mend.

Every message is one sentence or two: what is wrong, then what to do. The command line prints it and
exits with code 2, the page shows it, and nothing else catches it. A programming mistake is never one of
these classes: it keeps its traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from speech_xl.plain_text import one_line


class SpeechXLError(Exception):
    """Base of every error whose message is meant for the person at the keyboard.

    Messages quote names of files and words of other programs; what they do to a terminal is taken out of them here.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class RecordingError(SpeechXLError):
    """The recording cannot be read, or holds no sound."""


class ScheduleError(SpeechXLError):
    """A ratio, interval or memory budget that no schedule can satisfy."""


class QuestionError(SpeechXLError):
    """A question that cannot be asked: empty, too long, an unreadable list, or about no span of the recording."""


class MemoryFileError(SpeechXLError):
    """A memory file (.sxl) that is corrupt, foreign, or made by another model."""


class CheckpointError(SpeechXLError):
    """A checkpoint that is missing, incomplete or misshapen."""


class BackendError(SpeechXLError):
    """A backend that is not installed or cannot run here."""


class OutputError(SpeechXLError):
    """A result that cannot be written where it was asked for."""


class MissingPackageError(SpeechXLError):
    """An optional package that is not installed."""

    @classmethod
    def of(cls, what: str, package: str | None, extra: str) -> MissingPackageError:
        """`what` needs `package`, which the extra of pyproject.toml brings."""
        return cls(
            f"{what} needs the package {package}, which is not installed; install Speech-XL with its extra {extra!r}: "
            f"pip install '.[{extra}]' in its source folder, or 'NAME.whl[{extra}]' where you have its wheel."
        )


@contextlib.contextmanager
def without_folder(folder: Path) -> Iterator[None]:
    """Errors about a file say its name alone: where it lies on this machine is nobody's business who sent it."""
    try:
        yield
    except SpeechXLError as error:
        raise type(error)(str(error).replace(f"{folder}/", "")) from error
