"""The page in a real browser: what a person does, and that it looks the same while it happens.

Screenshots are left in screenshots/ for people to look at.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")

from speech_xl.checkpoints import EMBEDDED_FOLDER  # noqa: E402
from speech_xl.example import load_example  # noqa: E402
from speech_xl.model import SpeechModel  # noqa: E402
from tests.tiny import save_checkpoint, tiny_recognizer_config, write_sound  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "screenshots"
DESK = ROOT / "recipes" / "order_desk" / "example.ogg"  # what the embedded model understands
PATIENCE = 120_000  # ms: a slow machine is not a broken page


def serve(model: SpeechModel) -> Iterator[str]:
    from space.page import build_page, look

    page = build_page(model, max_hours=1.0, can_choose=True)
    _, url, _ = page.queue(default_concurrency_limit=4).launch(prevent_thread_lock=True, quiet=True, **look())
    yield url
    page.close()


@pytest.fixture(scope="module")
def address(tiny_checkpoint: Path) -> Iterator[str]:
    """The page, served with the embedded model where there is one."""
    trained = (EMBEDDED_FOLDER / "config.json").exists()
    chosen = os.environ.get("SPEECH_XL_MODEL") or ("nano" if trained else str(tiny_checkpoint))
    yield from serve(SpeechModel.load(chosen, "torch"))


@pytest.fixture(scope="module")
def words_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served with a random model whose speech tokens are recognised words."""
    folder = save_checkpoint(tmp_path_factory.mktemp("words") / "tiny", tiny_recognizer_config())
    yield from serve(SpeechModel.load(str(folder), "torch"))


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: playwright.Browser, address: str) -> Iterator[playwright.Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    outside: list[str] = []
    opened.on("request", lambda r: outside.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None)
    opened.set_default_timeout(PATIENCE)
    opened.goto(address)
    opened.get_by_role("button", name="Listen", exact=True).wait_for()
    yield opened
    context.close()
    assert not outside, f"the page asked others for {outside}"


def shoot(page: playwright.Page, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def hear_example(page: playwright.Page) -> None:
    page.get_by_role("button", name="Example", exact=True).click()
    page.locator("#sxl-status", has_text="heard, all of it").wait_for()


def hear(page: playwright.Page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_text(path.name).first.wait_for()
    page.get_by_role("button", name="Listen", exact=True).click()
    page.locator("#sxl-status", has_text="heard, all of it").wait_for()


def put(page: playwright.Page, question: str, turn: int) -> str:
    """Ask and wait for the answer of that turn (0, 1, ...)."""
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    answer = page.get_by_test_id("bot").nth(turn)
    answer.wait_for()
    page.locator(".sxl-evidence button").first.wait_for()
    return answer.inner_text().strip()


def test_hear_ask_and_play_the_evidence(page: playwright.Page) -> None:
    shoot(page, "start")
    hear(page, DESK)
    assert page.locator(".sxl-timeline rect.speech").count() > 20
    put(page, "What drink is order 28?", 0)
    playwright.expect(page.get_by_test_id("bot").first).to_have_text("cappuccino")
    shoot(page, "asked")
    start = page.locator(".sxl-evidence button").first.get_attribute("onclick")
    seconds = float(start.split("(")[1].split(",")[0])
    page.locator(".sxl-evidence button").first.click()
    page.wait_for_function(f"Math.abs(document.getElementById('sxl-player').currentTime - {seconds}) < 3")
    put(page, "How many shots are in order 64?", 1)
    playwright.expect(page.get_by_test_id("bot").nth(1)).to_have_text("double shot")
    assert page.locator(".sxl-timeline rect.evidence").count() >= 1


def test_a_question_before_any_recording_is_a_sentence(page: playwright.Page) -> None:
    page.get_by_label("Question", exact=True).fill("What drink is order 4?")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_test_id("bot").first.wait_for()
    assert "listen to a recording first" in page.get_by_test_id("bot").first.inner_text()


def test_a_file_that_is_no_sound_is_a_sentence_and_the_page_goes_on(page: playwright.Page, tmp_path: Path) -> None:
    bad = tmp_path / "<b>bad<b>.wav"
    bad.write_text("no sound at all")
    page.locator("input[type=file]").first.set_input_files(bad)
    page.get_by_text("bad").first.wait_for()
    page.get_by_role("button", name="Listen", exact=True).click()
    page.locator("#sxl-status strong").wait_for()
    assert "Traceback" not in page.content()
    assert page.locator("#sxl-status b").count() == 0
    hear_example(page)


def test_a_long_recording_can_be_cancelled(page: playwright.Page, tmp_path: Path) -> None:
    long = write_sound(tmp_path / "long.wav", 1800)
    page.locator("input[type=file]").first.set_input_files(long)
    page.get_by_text("long.wav").first.wait_for()
    page.get_by_role("button", name="Listen", exact=True).click()
    page.locator(".sxl-timeline rect").first.wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.locator("#sxl-status", has_text="Cancelled").wait_for()
    assert not [t for t in threading.enumerate() if t.name == "speech-xl-reader"]


def test_two_visitors_do_not_see_each_other(browser: playwright.Browser, page: playwright.Page, address: str) -> None:
    hear_example(page)
    other = browser.new_context().new_page()
    other.set_default_timeout(PATIENCE)
    other.goto(address)
    other.get_by_label("Question", exact=True).fill("What drink is order 46?")
    other.get_by_role("button", name="Ask", exact=True).click()
    other.get_by_test_id("bot").first.wait_for()
    assert "listen to a recording first" in other.get_by_test_id("bot").first.inner_text()
    other.context.close()


@pytest.mark.parametrize(("name", "width", "scheme"), [("phone", 390, "light"), ("dark", 1280, "dark")])
def test_it_fits_a_phone_and_the_dark(
    browser: playwright.Browser, address: str, name: str, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    hear_example(page)
    shoot(page, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_questions_while_a_long_recording_is_being_heard(page: playwright.Page, tmp_path: Path) -> None:
    long = write_sound(tmp_path / "long.wav", 1800)
    page.locator("input[type=file]").first.set_input_files(long)
    page.get_by_text("long.wav").first.wait_for()
    page.get_by_role("button", name="Listen", exact=True).click()
    page.locator("#sxl-status", has_text="you can ask already").wait_for()
    answer = put(page, "What drink is order 46?", 0)
    assert answer.startswith("Of the first ")
    seen = page.locator(".sxl-timeline").get_attribute("aria-label")
    page.wait_for_function(f"document.querySelector('.sxl-timeline').ariaLabel != '{seen}'")
    assert page.locator(".sxl-evidence button").count() >= 1, "listening on has wiped the evidence"
    shoot(page, "while_listening")
    page.get_by_role("button", name="Cancel").click()
    page.locator("#sxl-status", has_text="Cancelled").wait_for()


def test_compare_hears_the_recording_at_every_ratio(page: playwright.Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    run = page.get_by_role("button", name="Compare", exact=True)
    run.click()
    page.get_by_text("nothing to compare yet").first.wait_for()
    page.get_by_role("tab", name="Ask").click()
    hear_example(page)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Question to compare").fill("What drink is order 28?")
    run.click()
    rows = page.locator("#sxl-compared tbody tr")
    page.wait_for_function(
        "[...document.querySelectorAll('#sxl-compared tbody tr')].every(r => r.lastElementChild.textContent.endsWith('ms'))"
    )
    assert rows.count() == page.locator("#sxl-compared polyline").count() > 1
    assert page.locator("#sxl-compared th[scope=row]", has_text="pool").count() == 1
    shoot(page, "compare")


def test_a_kept_memory_goes_on_answering_without_the_audio(page: playwright.Page, tmp_path: Path) -> None:
    hear(page, DESK)
    said = put(page, "What drink is order 28?", 0)
    with page.expect_download() as kept:
        page.get_by_role("button", name="Keep memory").click()
    kept.value.save_as(tmp_path / "kept.sxl")
    page.reload()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "kept.sxl")
    page.get_by_text("kept.sxl").first.wait_for()
    page.get_by_role("button", name="Listen", exact=True).click()
    page.locator("#sxl-status", has_text="a memory of 5:19").wait_for()
    assert put(page, "What drink is order 28?", 0) == said


def test_what_the_model_understands_and_what_fits_is_said(page: playwright.Page) -> None:
    page.get_by_role("tab", name="Model").click()
    page.get_by_text("What this machine can hold").wait_for()
    assert page.locator(".sxl-table").nth(-1).locator("tbody tr").count() > 1
    shoot(page, "model")


def test_another_model_can_be_chosen(page: playwright.Page, tiny_checkpoint: Path) -> None:
    page.get_by_role("tab", name="Model").click()
    page.get_by_label("a checkpoint folder or a Hub id").fill("/nowhere")
    page.get_by_role("button", name="Load").click()
    page.get_by_text("There is no checkpoint folder /nowhere").first.wait_for()
    page.get_by_label("a checkpoint folder or a Hub id").fill(str(tiny_checkpoint))
    page.get_by_role("button", name="Load").click()
    page.get_by_text(f"({tiny_checkpoint.name})").first.wait_for()
    page.get_by_text("tiny answers here.").wait_for()
    page.get_by_role("tab", name="Ask").click()
    page.locator("#sxl-status", has_text="is loaded").wait_for()
    offered = page.get_by_text(load_example().suggestions[1])  # in place of the first model's own
    offered.click()
    playwright.expect(page.get_by_label("Question", exact=True)).to_have_value(load_example().suggestions[1])


def test_a_page_closed_in_mid_listening_stops_listening(
    browser: playwright.Browser, address: str, tmp_path: Path
) -> None:
    long = write_sound(tmp_path / "long.wav", 1800)
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator("input[type=file]").first.set_input_files(long)
    page.get_by_text("long.wav").first.wait_for()
    page.get_by_role("button", name="Listen", exact=True).click()
    page.locator(".sxl-timeline rect").first.wait_for()
    context.close()
    deadline = time.monotonic() + PATIENCE / 1000
    while [t for t in threading.enumerate() if t.name == "speech-xl-reader"]:
        assert time.monotonic() < deadline, "the recording is still being heard"
        time.sleep(0.2)


def test_the_transcript_is_searched_played_and_downloaded(
    browser: playwright.Browser, words_address: str, tmp_path: Path
) -> None:
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(words_address)
    hear(page, write_sound(tmp_path / "talk.wav", 20))
    assert page.locator(".sxl-caption time").count() == 1
    page.get_by_role("tab", name="Transcript").click()
    page.get_by_text("As recognised while listening").wait_for()
    lines = page.locator("#sxl-transcript li")
    assert lines.count() > 1
    last = lines.last.locator("span").inner_text()
    page.get_by_label("Search the transcript").fill(last.upper())
    playwright.expect(lines.last).to_be_visible()
    playwright.expect(lines.first).to_be_hidden()
    shoot(page, "transcript")
    lines.last.click()
    start = lines.last.get_attribute("onclick").split("(")[1].split(",")[0]
    page.wait_for_function(f"Math.abs(document.getElementById('sxl-player').currentTime - {start}) < 3")
    with page.expect_download() as saved:
        page.get_by_role("button", name="SRT").click()
    saved.value.save_as(tmp_path / "talk.srt")
    assert saved.value.suggested_filename == "talk.srt" and last in (tmp_path / "talk.srt").read_text()
    page.get_by_role("button", name="Transcribe from memory").click()
    page.get_by_text("From the memory").wait_for()
    page.get_by_role("button", name="As heard").click()
    page.get_by_text("As recognised while listening").wait_for()
    page.context.close()
