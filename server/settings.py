"""What whoever starts the server decides: keys, folders and limits. It knows no requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB, GIB = 2**20, 2**30
AUDIO_URLS = ("none", "public", "any")  # addresses that recordings are fetched from; public: none of a private network


@dataclass(frozen=True)
class Settings:
    """Limits of one server. Bytes are whole files' or keys' and values', as said."""

    store: Path  # the folder that memories are kept in
    keys: tuple[str, ...] = ()  # API keys; none: everybody who reaches the server is one and the same owner
    is_private: bool = False  # only this machine reaches the server
    store_bytes: int = 10 * GIB  # of .sxl files on disk, of all owners together
    resident_bytes: int = 2 * GIB  # of keys and values held ready; no single memory may be larger
    upload_bytes: int = 2 * GIB  # of one uploaded or fetched file
    json_bytes: int = 256 * MIB  # of one JSON body, which is read at once: base64 and all
    hours: float = 10.0  # longest recording
    listening: int = 2  # recordings heard at a time
    answering: int = 8  # questions answered and transcripts read at a time
    waiting: int = 32  # of each of the two, beside those in work
    audio_urls: str = "none"
    longest_answer: int = 4096  # tokens, whatever a request asks for

    @property
    def in_flight(self) -> int:
        """Requests with a body that are in the house at a time, from their first byte to their last."""
        return self.listening + self.answering + 2 * self.waiting
