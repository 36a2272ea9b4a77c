"""/mcp with the Model Context Protocol's own Python client: tools, keys, memories, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, Tool

from speech_xl.model import SpeechModel
from tests.serving import ANSWER, QUESTION, Server, messages, order, serving, talk, wait_until
from tests.test_server_bad_input import read_answer
from tests.test_server_limits import Held, held  # noqa: F401 (a fixture)

RECORDING = f"data:audio/wav;base64,{base64.b64encode(order()).decode()}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(SpeechModel.load("nano", "torch"), tmp_path_factory.mktemp("memories"), keys=("ann", "bob")) as server:
        yield server


@contextlib.asynccontextmanager
async def session(server: Server, key: str = "ann") -> AsyncIterator[ClientSession]:
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx.AsyncClient(headers=headers, timeout=60) as client,
        streamable_http_client(f"{server.url}/mcp", http_client=client) as (reading, writing, _),
        ClientSession(reading, writing) as session,
    ):
        await session.initialize()
        yield session


def call(server: Server, name: str, key: str = "ann", **arguments: Any) -> CallToolResult:
    async def work() -> CallToolResult:
        async with session(server, key) as client:
            return await client.call_tool(name, arguments)

    return asyncio.run(work())


def said(server: Server, name: str, key: str = "ann", **arguments: Any) -> dict[str, Any]:
    result = call(server, name, key, **arguments)
    assert not result.isError and json.loads(result.content[0].text) == result.structuredContent
    return result.structuredContent


def refused(server: Server, name: str, key: str = "ann", **arguments: Any) -> str:
    result = call(server, name, key, **arguments)
    assert result.isError and result.content[0].text.endswith(".")
    return result.content[0].text


def test_an_agent_finds_the_tools(server: Server) -> None:
    async def work() -> list[Tool]:
        async with session(server) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in asyncio.run(work())}
    assert set(tools) == {"ask", "transcribe", "list_memories"}
    takes = tools["ask"].inputSchema
    assert takes["required"] == ["question"] and {"recording", "memory", "ratio", "from", "to"} <= set(
        takes["properties"]
    )
    assert all(tool.description and tool.annotations.readOnlyHint for tool in tools.values())
    assert all("description" in part for part in takes["properties"].values())


def test_an_agent_asks_again_without_the_recording(server: Server) -> None:
    first = said(server, "ask", recording=RECORDING, question=QUESTION)
    assert first["answer"] == ANSWER and first["evidence"][0]["end"] <= 9.01
    again = said(server, "ask", memory=first["memory"], question=QUESTION)
    assert again["answer"] == ANSWER and again["reused"] and again["memory"] == first["memory"]
    assert [m["id"] for m in said(server, "list_memories")["memories"]] == [first["memory"]]
    written = said(server, "transcribe", memory=first["memory"], **{"from": 0, "to": "0:05"})
    assert written["segments"] and all(s["start"] < 5 for s in written["segments"])
    # What an agent has heard, the key's other clients may ask.
    chat = server.client("ann").chat.completions.create(
        model="nano", messages=messages(QUESTION), extra_body={"speech_xl": {"memory": first["memory"]}}
    )
    assert chat.choices[0].message.content == ANSWER and chat.speech_xl["reused"]


def test_a_key_reaches_its_own_memories_alone(server: Server) -> None:
    memory = said(server, "ask", recording=RECORDING, question=QUESTION)["memory"]
    assert said(server, "list_memories", "bob")["memories"] == []
    assert "no memory with this id" in refused(server, "ask", "bob", memory=memory, question=QUESTION)
    for headers in ({}, {"Authorization": "Bearer eve"}):
        answer = httpx.post(
            f"{server.url}/mcp", headers=headers, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        )
        assert answer.status_code == 401 and "key" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("ask", {"recording": RECORDING}, "question: This field is needed"),
        ("ask", {"recording": RECORDING, "question": " "}, "no text"),
        ("ask", {"question": "a?"}, "no recording"),
        ("ask", {"recording": "data:audio/wav;base64,???", "question": "a?"}, "not valid base64"),
        ("ask", {"recording": "data:audio/wav;base64,bm8gc291bmQ=", "question": "a?"}, "not a recording"),
        ("ask", {"recording": "http://127.0.0.1/a.wav", "question": "a?"}, "fetches no recordings"),
        ("ask", {"recording": "/etc/passwd", "question": "a?"}, "fetches no recordings"),
        ("ask", {"recording": RECORDING, "question": "a?", "ratio": 3}, "Ratio 3"),
        ("ask", {"recording": RECORDING, "question": "a?", "colour": "red"}, "colour"),
        ("transcribe", {"recording": RECORDING, "from": "1:00"}, "outside the recording"),
        ("transcribe", {}, "no recording"),
        ("forget", {}, "no tool 'forget'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(server: Server, name: str, arguments: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(server, name, **arguments)


def test_bodies_and_methods_that_are_none(server: Server) -> None:
    headers = {"Authorization": "Bearer ann", "Accept": "application/json, text/event-stream"}
    for method, status in (("GET", 405), ("DELETE", 405), ("PUT", 405)):
        assert httpx.request(method, f"{server.url}/mcp", headers=headers).status_code == status
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = f"POST /mcp HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {3 * 10**9}\r\n"
        connection.sendall((head + "Authorization: Bearer ann\r\n\r\n").encode())
        status, body = read_answer(connection)
    assert status == 413 and body["error"]["code"] == "body_too_large"
    assert httpx.post(f"{server.url}/mcp", headers=headers, content=b"{").status_code in (400, 415)
    assert said(server, "list_memories", "bob") == {"memories": []}


def test_an_agent_that_leaves_ends_the_hearing(
    tiny_speech_model: SpeechModel,
    tmp_path: Path,
    held: type[Held],  # noqa: F811
) -> None:
    recording = f"data:audio/wav;base64,{base64.b64encode(talk(seed=60)).decode()}"

    async def leave() -> None:
        async with session(server) as client:
            asking = asyncio.ensure_future(client.call_tool("ask", {"recording": recording, "question": "a?"}))
            await asyncio.to_thread(held.begun.acquire)
            asking.cancel()

    with serving(tiny_speech_model, tmp_path / "memories", listening=1) as server:
        asyncio.run(leave())
        wait_until(lambda: not server.service.library.hearings)
        held.go_on.set()
        wait_until(lambda: server.service.listening.jobs == 0)
        assert not held.begun.acquire(blocking=False)
