"""Text that every file and terminal takes, whatever a name from outside holds: what is none is shown by its number."""

from __future__ import annotations

import re

# Lone surrogates, which stand for bytes that are no text; what moves a terminal's cursor or colours it; and marks that
# turn the direction of what follows, so that a name reads as another.
_STRANGE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_TABS_AND_ENDS = re.compile("[\t\n]")


def plain_text(text: str) -> str:
    """`text` without lone surrogates, which stand for bytes of a name that are no text and cannot be encoded."""
    return text.encode("utf-8", "backslashreplace").decode()


def harmless(text: str) -> str:
    r"""`text` as a terminal shows it and does nothing else: `\x1b` for an escape. Tabs and ends of lines stay."""
    return _STRANGE.sub(_number, text)


def one_line(text: object) -> str:
    r"""The same on one line: `\n` for the end of a line."""
    return _TABS_AND_ENDS.sub(_number, harmless(str(text)))


def _number(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
