"""Text that every file and terminal takes: what is no text in a name, bytes that are none, is shown by their numbers."""

from __future__ import annotations


def plain_text(text: str) -> str:
    """`text` without lone surrogates, which stand for bytes of a name that are no text and cannot be encoded."""
    return text.encode("utf-8", "backslashreplace").decode()
