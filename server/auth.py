"""API keys, and whose memories are whose. It knows no memories."""

from __future__ import annotations

import hashlib
import hmac

from fastapi import Request

from server.errors import ApiError

EVERYBODY = "everybody"  # the owner where the server has no keys


def owner_of(key: str) -> str:
    """The name of a key's folder: it tells nobody the key."""
    return hashlib.sha256(f"speech-xl {key}".encode()).hexdigest()[:32]


class Keys:
    """The server's keys. As a dependency of a route: the owner whose key a request carries; 401 for any other."""

    def __init__(self, keys: tuple[str, ...]):
        self._owners = [owner_of(key) for key in keys]

    def owner(self, key: str) -> str | None:
        """Whose key it is; None if it is nobody's."""
        asked = owner_of(key)
        known = [owner for owner in self._owners if hmac.compare_digest(owner, asked)]
        return known[0] if known else None

    def __call__(self, request: Request) -> str:
        if not self._owners:
            return EVERYBODY
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refuse("An API key is needed; send it as Authorization: Bearer KEY.")
        owner = self.owner(key.strip())
        if owner is None:
            raise _refuse("This API key is not known here; check it.")
        return owner


def _refuse(sentence: str) -> ApiError:
    return ApiError(401, sentence, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
