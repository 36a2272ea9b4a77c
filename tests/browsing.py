"""The page in a real browser, for tests: a served page, a Chromium, and what a person does with them.

Everything waits for what is to be seen, never for a time: a machine that is busy is not a broken page.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")

from space.shelf import Shelf  # noqa: E402
from speech_xl.model import SpeechModel  # noqa: E402
from tests.tiny import save_checkpoint, tiny_recognizer_config  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "screenshots"
DESK = ROOT / "recipes" / "order_desk" / "example.ogg"  # what the embedded model understands
PATIENCE = 240_000  # ms


def serve(model: SpeechModel) -> Iterator[str]:
    from space.page import build_page, look

    with tempfile.TemporaryDirectory() as folder:
        page = build_page(model, max_hours=1.0, can_choose=True, shelf=Shelf(Path(folder)))
        _, url, _ = page.queue(default_concurrency_limit=4).launch(prevent_thread_lock=True, quiet=True, **look())
        yield url
        page.close()


def words_model(folder: Path) -> SpeechModel:
    """A random model whose speech tokens are recognised words."""
    return SpeechModel.load(str(save_checkpoint(folder / "tiny", tiny_recognizer_config())), "torch")


@contextlib.contextmanager
def chromium() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@contextlib.contextmanager
def visit(browser: playwright.Browser, address: str, **context: Any) -> Iterator[playwright.Page]:
    """A visitor of their own; AssertionError at the end if the page asked any other server for anything."""
    visitor = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context)
    page = visitor.new_page()
    outside: list[str] = []
    page.on("request", lambda r: outside.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None)
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.get_by_role("button", name="Listen", exact=True).wait_for()
    yield page
    visitor.close()
    assert not outside, f"the page asked others for {outside}"


def shoot(page: playwright.Page, name: str) -> None:
    """For people to look at."""
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def press(page: playwright.Page, name: str) -> None:
    button = page.get_by_role("button", name=name, exact=True)
    button.scroll_into_view_if_needed()
    button.click()


def says(page: playwright.Page, text: str) -> None:
    """Waits until the page's status holds `text`."""
    page.locator("#sxl-status", has_text=text).wait_for()


def hear_example(page: playwright.Page) -> None:
    press(page, "Example")
    says(page, "heard, all of it")


def choose_file(page: playwright.Page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_text(path.name).first.wait_for()
    press(page, "Listen")


def hear(page: playwright.Page, path: Path) -> None:
    choose_file(page, path)
    says(page, "heard, all of it")


def put(page: playwright.Page, question: str, turn: int) -> str:
    """Ask and wait for the answer of that turn (0, 1, ...)."""
    page.get_by_label("Question", exact=True).fill(question)
    press(page, "Ask")
    answer = page.get_by_test_id("bot").nth(turn)
    answer.wait_for()
    page.locator(".sxl-evidence button").first.wait_for()
    return answer.inner_text().strip()


def position_is(page: playwright.Page, seconds: float) -> None:
    """Waits until the player stands within three seconds behind a moment."""
    page.wait_for_function(f"Math.abs(document.querySelector('#sxl-player audio').currentTime - {seconds}) < 3")
