"""/v1/memories and what is kept on disk: whose it is, how much of it, and what becomes of damaged or foreign files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from server.auth import owner_of
from server.errors import ApiError
from server.resident import Resident
from server.store import Store
from speech_xl.errors import OutputError
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel
from tests.serving import Server, input_audio, messages, serving, talk
from tests.tiny import save_checkpoint, tiny_config


@pytest.fixture
def server(tiny_speech_model: SpeechModel, tmp_path: Path) -> Iterator[Server]:
    with serving(tiny_speech_model, tmp_path / "memories", keys=("ann's key", "bob's key")) as server:
        yield server


@pytest.fixture
def ann(server: Server) -> OpenAI:
    return server.client("ann's key")


@pytest.fixture
def bob(server: Server) -> OpenAI:
    return server.client("bob's key")


def memories(client: OpenAI) -> list[dict]:
    return client.get("/memories", cast_to=object)["data"]


def send(client: OpenAI, data: bytes, name: str = "talk.wav", **fields: str) -> dict:
    return client.post(
        "/memories",
        cast_to=object,
        files={"file": (name, data)},
        body=fields,
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )


def download(client: OpenAI, identifier: str) -> bytes:
    return client.get(f"/memories/{identifier}/content", cast_to=httpx.Response).content


def ask(client: OpenAI, **asked: object):
    return client.chat.completions.create(model="tiny", messages=messages("a?"), max_tokens=3, **asked)


def test_heard_in_advance_listed_asked_and_deleted(ann: OpenAI) -> None:
    made = send(ann, talk(3.0), **{"speech_xl[ratio]": "8"})
    assert made["object"] == "memory" and made["ratio"] == "8" and made["seconds_heard"] == 3.0 and made["usable"]
    assert made["filename"] == "talk.wav" and made["speech_tokens"] == 38 and made["model"] == "tiny"
    assert memories(ann) == [made] and ann.get(f"/memories/{made['id']}", cast_to=object) == made
    said = ask(ann, extra_body={"speech_xl": {"memory": made["id"]}})
    assert said.speech_xl["reused"] and said.speech_xl["memory"] == made["id"]
    assert send(ann, talk(3.0), **{"speech_xl[ratio]": "8"}) == made  # it was there
    gone = ann.delete(f"/memories/{made['id']}", cast_to=object)
    assert gone == {"id": made["id"], "object": "memory", "deleted": True} and memories(ann) == []
    for call in (ann.get, ann.delete):
        with pytest.raises(openai.NotFoundError):
            call(f"/memories/{made['id']}", cast_to=object)
    with pytest.raises(openai.NotFoundError):
        ask(ann, extra_body={"speech_xl": {"memory": made["id"]}})


def test_a_file_goes_from_one_key_to_another(ann: OpenAI, bob: OpenAI) -> None:
    made = send(ann, talk(3.0))
    data = download(ann, made["id"])
    taken = send(bob, data, "from ann.sxl")
    assert {**taken, "created_at": 0} == {**made, "created_at": 0}
    # The recording itself finds the memory that was sent, too.
    said = bob.chat.completions.create(model="tiny", messages=messages("a?", input_audio(talk(3.0))), max_tokens=3)
    assert said.speech_xl["reused"] and said.speech_xl["memory"] == made["id"]


def test_nobody_reaches_anothers_memories(ann: OpenAI, bob: OpenAI, server: Server) -> None:
    made = send(ann, talk(3.0))
    assert memories(bob) == []
    for attempt in (
        lambda: bob.get(f"/memories/{made['id']}", cast_to=object),
        lambda: download(bob, made["id"]),
        lambda: bob.delete(f"/memories/{made['id']}", cast_to=object),
        lambda: ask(bob, extra_body={"speech_xl": {"memory": made["id"]}}),
        lambda: bob.get(f"/memories/..%2F{owner_of(ann.api_key)}%2F{made['id']}", cast_to=object),
        lambda: ask(bob, extra_body={"speech_xl": {"memory": f"../{owner_of(ann.api_key)}/{made['id']}"}}),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    # Not even by its hash: that it has been heard before is somebody else's secret.
    said = bob.chat.completions.create(model="tiny", messages=messages("a?", input_audio(talk(3.0))), max_tokens=3)
    assert said.speech_xl["reused"] is False and said.usage.prompt_tokens_details.cached_tokens == 0
    assert memories(ann) == [made]


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer nobody's", "Basic ann's key", "Bearer ann's key2"])
def test_without_a_key_nothing_is_done(server: Server, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key}
    for method, path in (
        ("GET", "models"),
        ("GET", "memories"),
        ("POST", "memories"),
        ("POST", "chat/completions"),
        ("POST", "audio/transcriptions"),
        ("DELETE", "memories/x"),
        ("GET", "memories/x/content"),
    ):
        answer = httpx.request(method, f"{server.url}/v1/{path}", headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("health", "metrics"):
        assert httpx.get(f"{server.url}/{path}").status_code == 200
    assert "nobody" not in httpx.get(f"{server.url}/metrics").text


def test_a_restart_loses_nothing(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    with serving(tiny_speech_model, tmp_path / "memories") as server:
        made = send(server.client(), talk(3.0))
        said = ask(server.client(), extra_body={"speech_xl": {"memory": made["id"]}})
    with serving(tiny_speech_model, tmp_path / "memories") as server:
        again = ask(server.client(), extra_body={"speech_xl": {"memory": made["id"]}})
        assert again.choices == said.choices and again.speech_xl == said.speech_xl
        assert memories(server.client()) == [made]


def test_a_memory_of_another_model(ann: OpenAI, tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    other = SpeechModel.load(str(save_checkpoint(tmp_path / "other", tiny_config(), seed=9)), "torch")
    with serving(other, tmp_path / "theirs") as theirs:
        made = send(theirs.client(), talk(3.0))
        data = download(theirs.client(), made["id"])
    with pytest.raises(openai.BadRequestError, match="was made by another model") as refused:
        send(ann, data, "theirs.sxl")
    assert refused.value.code == "invalid_memory" and "/" not in refused.value.body["message"]
    with serving(tiny_speech_model, tmp_path / "theirs") as server:  # a folder that the other model has filled
        assert [m["usable"] for m in memories(server.client())] == [False]
        with pytest.raises(openai.BadRequestError, match="was made by another model"):
            ask(server.client(), extra_body={"speech_xl": {"memory": made["id"]}})


@pytest.mark.parametrize("damage", ["cut", "noise", "sound"])
def test_files_that_are_no_memories(ann: OpenAI, damage: str) -> None:
    data = download(ann, send(ann, talk(3.0))["id"])
    bad = {"cut": data[:-50], "noise": data[:3000] + b"\xff" * 40 + data[3040:], "sound": talk(0.05)}[damage]
    before = memories(ann)
    with pytest.raises(openai.BadRequestError, match=r"talk\.sxl"):
        send(ann, bad, "talk.sxl")
    assert memories(ann) == before


def test_a_file_that_is_damaged_on_disk(ann: OpenAI, server: Server) -> None:
    made = send(ann, talk(3.0))
    (path,) = server.service.settings.store.glob("*/*.sxl")
    path.write_bytes(path.read_bytes()[:-50])
    server.service.library.resident.drop((owner_of(ann.api_key), made["id"]))
    assert memories(ann) == []  # nobody can use it
    with pytest.raises(openai.BadRequestError, match="damaged"):
        ask(ann, extra_body={"speech_xl": {"memory": made["id"]}})
    assert {**send(ann, talk(3.0)), "created_at": 0} == {**made, "created_at": 0}  # heard again
    assert ask(ann, extra_body={"speech_xl": {"memory": made["id"]}}).choices


def test_what_cannot_be_kept_is_answered_and_says_so(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    with serving(tiny_speech_model, tmp_path / "memories", store_bytes=2000) as server:
        client = server.client()
        said = client.chat.completions.create(
            model="tiny", messages=messages("a?", input_audio(talk(3.0))), max_tokens=3
        )
        assert said.speech_xl["memory"] is None and "heard again" in said.speech_xl["warnings"][0]
        with pytest.raises(openai.InternalServerError) as refused:
            send(client, talk(3.0))
        assert refused.value.status_code == 507 and refused.value.code == "no_space"
        assert list((tmp_path / "memories").rglob("*.sxl")) == []


def write(size: int):
    return lambda path: path.write_bytes(b"x" * size)


def names(store: Store) -> set[str]:
    return {path.stem[-1] for path, _ in store._files()}


def identifier(letter: str) -> str:
    return f"mem_{letter * 32}"


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "memories", 1000)
    for moment, letter in enumerate("abc"):
        store.keep("ann" if letter == "a" else "bob", identifier(letter), write(300))
        path = store.path("ann" if letter == "a" else "bob", identifier(letter))
        os.utime(path, (1000 + moment, 5000 - moment))
    assert names(store) == {"a", "b", "c"} and store.bytes == 900
    store.path("ann", identifier("a"))  # used
    store.keep("bob", identifier("d"), write(300))
    assert names(store) == {"a", "c", "d"}
    store.keep("bob", identifier("e"), write(900))
    assert names(store) == {"e"}
    with pytest.raises(ApiError, match="more than the 1000"):
        store.keep("bob", identifier("f"), write(1001))
    assert names(store) == {"e"}


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "memories", 1000)
    store.keep("ann", identifier("a"), write(300))

    def full(path: Path) -> None:
        path.write_bytes(b"y" * 10)
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError):
        store.keep("ann", identifier("a"), full)
    path = store.path("ann", identifier("a"))
    assert path.read_bytes() == b"x" * 300 and [p.name for p in path.parent.iterdir()] == [path.name]


def test_leftovers_of_a_kill_are_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "memories", 1000)
    left = tmp_path / "memories" / "ann" / f".{'0' * 32}.0"

    def write(path: Path) -> None:
        left.mkdir()
        (left / "half").write_bytes(b"half")
        Store(tmp_path / "memories", 1000)
        path.write_bytes(b"whole")

    store.keep("ann", identifier("a"), write)
    assert not left.exists() and store.path("ann", identifier("a")).read_bytes() == b"whole" and store.bytes == 5


@pytest.mark.parametrize(
    "name", ["", "mem_", "mem_x", "../ann/mem_" + "a" * 32, "mem_" + "a" * 32 + "/..", "mem_" + "A" * 32]
)
def test_ids_are_no_paths(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "memories", 1000)
    store.keep("ann", identifier("a"), write(3))
    assert (
        store.path("ann", name) is None
        and not store.delete("ann", name)
        and store.entry("bob", identifier("a")) is None
    )


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--store"):
        Store(tmp_path / "file" / "memories", 1000)


def test_memories_in_ram_keep_to_their_budget(tiny_speech_model: SpeechModel) -> None:
    class Sized(AudioMemory):
        def __init__(self, size: int):
            object.__setattr__(self, "bytes", size)

    resident = Resident(100)
    threads = [threading.Thread(target=resident.put, args=(("ann", str(n)), Sized(30))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resident.bytes == 90
    kept = [n for n in range(20) if resident.get(("ann", str(n)))]
    resident.get(("ann", str(kept[0])))  # used
    resident.put(("ann", "new"), Sized(30))
    assert resident.get(("ann", str(kept[0]))) and not resident.get(("ann", str(kept[1])))
    resident.drop(("ann", "new"))
    resident.drop(("ann", "new"))
    assert resident.bytes == 60
