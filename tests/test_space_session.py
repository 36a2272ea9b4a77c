"""What one visitor has, while other threads change it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from space.session import Run, Session


def test_a_recording_that_has_made_way_is_not_asked_while_its_files_are_still_being_deleted() -> None:
    session, deleting, deleted = Session(model=None), threading.Event(), threading.Event()

    def delete() -> None:
        deleting.set()
        assert deleted.wait(10)

    session.run.memory, session.run.folder = "of the first recording", SimpleNamespace(cleanup=delete)
    first = session.run
    assert first.askable() == ("of the first recording", False)
    forgetting = threading.Thread(target=session.forget)
    forgetting.start()
    assert deleting.wait(10)
    assert session.run is not first and session.run.askable() == first.askable() == (None, False)
    deleted.set()
    forgetting.join(10)


def test_a_question_that_began_before_another_recording_is_about_the_first() -> None:
    session = Session(model=None)

    class Events(list):
        def __bool__(self) -> bool:  # as another thread would, between two looks at the session
            session.forget()
            return True

    session.run.events = Events()
    session.run.listening = SimpleNamespace(snapshot=lambda: "heard so far", cancel=lambda: None)
    assert session.run.askable() == ("heard so far", True)
    assert session.run.askable() == (None, False)


def test_cancel_holds_before_the_recording_is_opened() -> None:
    cancelled = []
    run = Run()
    assert run.cancel() and run.is_cancelled and not run.cancel()
    run.listening = SimpleNamespace(cancel=lambda: cancelled.append(True))
    run.drop()
    assert cancelled == [True] and run.askable() == (None, False)
