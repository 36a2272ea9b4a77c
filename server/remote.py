"""Recordings behind http(s) addresses, where whoever starts the server allows it.

A client names the address, so the server must not be its way into a private network: each name is looked up once, and
the connection goes to the very address that was found to be public. Redirects are few and are checked like the first.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import unquote, urljoin, urlsplit

import httpcore

from server.errors import ApiError
from server.recordings import Recording, RecordingWriter

TIMEOUTS = {"connect": 10.0, "read": 30.0, "write": 10.0, "pool": 10.0}  # seconds
LONGEST_FETCH = 600.0  # seconds, for all of it
MOST_REDIRECTS = 4
REDIRECTS = (301, 302, 303, 307, 308)


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only."""

    def __init__(self) -> None:
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a public address of the host; ConnectError if it has none."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(is_public(address) for address in addresses):
            raise _refuse("is not a public address, and no others are fetched from")
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """As the network behind it does."""
        await self._inner.sleep(seconds)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the whole internet's; the IPv4 address inside an IPv6 one counts, too."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    return ip.is_global and not ip.is_multicast and (inner is None or inner.is_global)


def _refuse(reason: str) -> ApiError:
    return ApiError(400, f"The recording at audio_url.url cannot be fetched: the address {reason}.", "invalid_url")


async def fetch(url: str, allowed: str, limit: int) -> Recording:
    """The file at an http(s) URL, at most `limit` bytes; `allowed` is one of settings.AUDIO_URLS."""
    if allowed == "none":
        raise ApiError(
            400,
            "This server fetches no recordings; send the audio itself, as input_audio or a data: URL.",
            "invalid_url",
        )
    network = PublicNetwork() if allowed == "public" else None
    try:
        async with asyncio.timeout(LONGEST_FETCH), httpcore.AsyncConnectionPool(network_backend=network) as pool:
            for _ in range(MOST_REDIRECTS + 1):
                found = await _get(pool, url, limit)
                if isinstance(found, Recording):
                    return found
                url = urljoin(url, found)
    except (httpcore.TimeoutException, TimeoutError):
        raise _refuse("does not answer in time") from None
    except (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        raise _refuse("cannot be reached, or does not speak HTTP") from error
    raise _refuse("redirects too many times")


async def _get(pool: httpcore.AsyncConnectionPool, url: str, limit: int) -> Recording | str:
    """The file, or where a redirect leads."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
        url.encode("ascii")
    except ValueError:  # UnicodeEncodeError is one, too
        raise _refuse("is not a valid web address") from None
    if parts.scheme not in ("http", "https") or not has_host:
        raise _refuse("does not start with http:// or https:// and a host")
    target = parts._replace(fragment="").geturl()
    headers: dict[bytes | str, bytes | str] = {"User-Agent": "speech-xl", "Accept": "audio/*, */*;q=0.5"}
    async with pool.stream("GET", target, headers=headers, extensions={"timeout": TIMEOUTS}) as response:
        fields = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in REDIRECTS and b"location" in fields:
            return fields[b"location"]
        if response.status != 200:
            raise _refuse(f"answers with HTTP status {response.status}")
        with RecordingWriter(unquote(parts.path) or "audio", limit) as writer:
            async for piece in response.aiter_stream():
                await asyncio.to_thread(writer.write, piece)
            return writer.finish()
