"""What one visitor has, while other threads change it."""

from __future__ import annotations

from types import SimpleNamespace

from space.session import Session


def test_a_session_forgotten_while_it_is_asked_hands_out_what_it_had() -> None:
    session = Session(model=None)

    class Events(list):
        def __bool__(self) -> bool:  # as another thread would, between two looks at the session
            session.forget()
            return True

    session.events = Events()
    session.listening = SimpleNamespace(snapshot=lambda: "heard so far", cancel=lambda: None)
    assert session.askable() == ("heard so far", True)
    assert session.askable() == (None, False)
