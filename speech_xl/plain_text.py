"""Text that every file and terminal takes, whatever a name from outside holds: what is none is shown by its number."""

from __future__ import annotations

import re

# Lone surrogates, which stand for bytes that are no text; what moves a terminal's cursor, colours it or ends a line;
# and marks that turn the direction of what follows, so that a name reads as another.
_STRANGE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain_text(text: str) -> str:
    """`text` without lone surrogates, which stand for bytes of a name that are no text and cannot be encoded."""
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: object) -> str:
    """`text` as a line of a terminal shows it and does nothing else: `\\x1b` for an escape, `\\n` for the end of a line."""
    return _STRANGE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))
