"""Files that are whole or absent: what a failure, a kill and another writer leave."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from speech_xl.errors import OutputError
from speech_xl.whole_file import remove_leftovers, whole_file


def write_and_die(path: Path) -> None:
    """Be killed in the middle of writing, in another process."""
    child = os.fork()
    if not child:
        with whole_file(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first" and names(tmp_path) == ["a.txt"]


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 251}.txt"  # as long as a name can be
    write_and_die(path)
    assert len(names(tmp_path)) == 1 and not path.exists()
    with whole_file(path) as temporary:
        assert temporary.read_text() == ""
        temporary.write_text("whole")
    assert path.read_text() == "whole" and names(tmp_path) == [path.name]


def test_leftovers_are_removed_and_writers_are_not_disturbed(tmp_path: Path) -> None:
    write_and_die(tmp_path / "dead.txt")
    with whole_file(tmp_path / "alive.txt") as temporary:
        temporary.write_text("alive")
        remove_leftovers(tmp_path)
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == ["alive.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path, halfway, goes_on = tmp_path / "a.txt", threading.Event(), threading.Event()

    def write_slowly() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("slow")
            halfway.set()
            goes_on.wait(60)

    slow = threading.Thread(target=write_slowly)
    slow.start()
    halfway.wait(60)
    with whole_file(path) as temporary:
        temporary.write_text("fast")
    assert path.read_text() == "fast"
    goes_on.set()
    slow.join()
    assert path.read_text() == "slow" and names(tmp_path) == ["a.txt"]


def test_what_is_no_folder_of_ours_is_left_alone(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "a.txt", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("years of work")
    write_and_die(path)
    (left,) = tmp_path.glob(".*")
    (left / "a.txt").unlink()
    left.rmdir()
    left.symlink_to(elsewhere)
    with whole_file(path) as temporary:
        temporary.write_text("whole")
    remove_leftovers(tmp_path)
    assert path.read_text() == "whole" and names(elsewhere) == ["thesis.txt"]


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), whole_file(tmp_path / "no such folder" / "a.txt"):
        pass
