"""API keys, and whose memories are whose. It knows no memories.

Where there are no keys, a page of another site in the browser of somebody on this machine must not be taken for them.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from fastapi import Request

from server.errors import ApiError
from space.address import THIS_MACHINE

EVERYBODY = "everybody"  # the owner where the server has no keys


def owner_of(key: str) -> str:
    """The name of a key's folder: it tells nobody the key."""
    return hashlib.sha256(f"speech-xl {key}".encode()).hexdigest()[:32]


class Keys:
    """The server's keys. As a dependency of a route: the owner whose key a request carries; 401 for any other.

    `is_private`: only this machine reaches the server.
    """

    def __init__(self, keys: tuple[str, ...], is_private: bool = False):
        self._owners = [owner_of(key) for key in keys]
        self._is_private = is_private

    def owner(self, key: str) -> str | None:
        """Whose key it is; None if it is nobody's."""
        asked = owner_of(key)
        known = [owner for owner in self._owners if hmac.compare_digest(owner, asked)]
        return known[0] if known else None

    def __call__(self, request: Request) -> str:
        if not self._owners:
            self._check_site(request)
            return EVERYBODY
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refuse("An API key is needed; send it as Authorization: Bearer KEY.")
        owner = self.owner(key.strip())
        if owner is None:
            raise _refuse("This API key is not known here; check it.")
        return owner

    def _check_site(self, request: Request) -> None:
        """ApiError 403 for another site's page, which names itself, or whose name has been made to lead here."""
        origin = request.headers.get("origin")
        if origin is not None and not _is_here(origin):
            raise ApiError(403, "Pages of other sites are not served without an API key.", "invalid_origin")
        host = request.headers.get("host", "")
        if self._is_private and not _is_here(f"//{host}"):
            raise ApiError(
                403,
                f"Without an API key this server answers only as localhost, not as {host[:60]!r}.",
                "invalid_host",
            )


def _is_here(url: str) -> bool:
    try:
        return urlsplit(url).hostname in THIS_MACHINE
    except ValueError:  # no address at all
        return False


def _refuse(sentence: str) -> ApiError:
    return ApiError(401, sentence, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
