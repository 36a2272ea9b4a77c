"""Where a page or a server listens. It knows sockets alone."""

from __future__ import annotations

import socket

from speech_xl.errors import OutputError

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there, at any free port for 0; OutputError where that cannot be.

    To be called before a model is loaded, so that it is said at once.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"Cannot listen on {host}:{port} ({reason}); give another --host or --port.") from None
