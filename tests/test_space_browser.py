"""The page in a real browser: what a person does, and that it looks the same while it happens.

Screenshots are left in screenshots/ for people to look at.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from speech_xl.checkpoints import EMBEDDED_FOLDER
from speech_xl.example import load_example
from speech_xl.model import SpeechModel
from tests.browsing import (
    DESK,
    PATIENCE,
    choose_file,
    chromium,
    hear,
    hear_example,
    needs_chromium,
    playwright,
    position_is,
    press,
    put,
    says,
    serve,
    shoot,
    visit,
    words_model,
)
from tests.tiny import write_sound

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address(tiny_checkpoint: Path) -> Iterator[str]:
    """The page, served with the embedded model where there is one."""
    trained = (EMBEDDED_FOLDER / "config.json").exists()
    chosen = os.environ.get("SPEECH_XL_MODEL") or ("nano" if trained else str(tiny_checkpoint))
    yield from serve(SpeechModel.load(chosen, "torch"))


@pytest.fixture(scope="module")
def words_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(words_model(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: playwright.Browser, address: str) -> Iterator[playwright.Page]:
    with visit(browser, address) as opened:
        yield opened


def test_hear_ask_and_play_the_evidence(page: playwright.Page) -> None:
    shoot(page, "start")
    hear(page, DESK)
    assert page.locator(".sxl-timeline rect.speech").count() > 20
    put(page, "What drink is order 28?", 0)
    playwright.expect(page.get_by_test_id("bot").first).to_have_text("cappuccino")
    shoot(page, "asked")
    start = page.locator(".sxl-evidence button").first.get_attribute("onclick")
    seconds = float(start.split("(")[1].split(",")[0])
    position_is(page, seconds)  # the player waits where the answer comes from
    page.locator(".sxl-evidence button").first.click()
    page.wait_for_function("!document.querySelector('#sxl-player audio').paused")
    position_is(page, seconds)
    put(page, "How many shots are in order 64?", 1)
    playwright.expect(page.get_by_test_id("bot").nth(1)).to_have_text("double shot")
    assert page.locator(".sxl-timeline rect.evidence").count() >= 1


def test_a_question_before_any_recording_is_a_sentence(page: playwright.Page) -> None:
    page.get_by_label("Question", exact=True).fill("What drink is order 4?")
    press(page, "Ask")
    page.get_by_test_id("bot").first.wait_for()
    assert "listen to a recording first" in page.get_by_test_id("bot").first.inner_text()


def test_a_file_that_is_no_sound_is_a_sentence_and_the_page_goes_on(page: playwright.Page, tmp_path: Path) -> None:
    bad = tmp_path / "<b>bad<b>.wav"
    bad.write_text("no sound at all")
    page.locator("input[type=file]").first.set_input_files(bad)
    page.get_by_text("bad").first.wait_for()
    press(page, "Listen")
    page.locator("#sxl-status strong").wait_for()
    assert "Traceback" not in page.content()
    assert page.locator("#sxl-status b").count() == 0
    hear_example(page)


def test_a_long_recording_can_be_cancelled(page: playwright.Page, tmp_path: Path) -> None:
    long = write_sound(tmp_path / "long.wav", 1800)
    choose_file(page, long)
    page.locator(".sxl-timeline rect").first.wait_for()
    press(page, "Cancel")
    says(page, "Cancelled")
    assert not [t for t in threading.enumerate() if t.name == "speech-xl-reader"]


def test_two_visitors_do_not_see_each_other(browser: playwright.Browser, page: playwright.Page, address: str) -> None:
    hear_example(page)
    with visit(browser, address) as other:
        other.get_by_label("Question", exact=True).fill("What drink is order 46?")
        press(other, "Ask")
        other.get_by_test_id("bot").first.wait_for()
        assert "listen to a recording first" in other.get_by_test_id("bot").first.inner_text()


@pytest.mark.parametrize(("name", "width", "scheme"), [("phone", 390, "light"), ("dark", 1280, "dark")])
def test_it_fits_a_phone_and_the_dark(
    browser: playwright.Browser, address: str, name: str, width: int, scheme: str
) -> None:
    with visit(browser, address, viewport={"width": width, "height": 844}, color_scheme=scheme) as page:
        hear_example(page)
        shoot(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_questions_while_a_long_recording_is_being_heard(page: playwright.Page, tmp_path: Path) -> None:
    long = write_sound(tmp_path / "long.wav", 1800)
    choose_file(page, long)
    says(page, "you can ask already")
    answer = put(page, "What drink is order 46?", 0)
    assert answer.startswith("Of the first ")
    seen = page.locator(".sxl-timeline svg").get_attribute("aria-label")
    page.wait_for_function(
        "seen => document.querySelector('.sxl-timeline svg').getAttribute('aria-label') != seen", arg=seen
    )
    assert page.locator(".sxl-evidence button").count() >= 1, "listening on has wiped the evidence"
    shoot(page, "while_listening")
    press(page, "Cancel")
    says(page, "Cancelled")


def test_compare_hears_the_recording_at_every_ratio(page: playwright.Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    run = page.get_by_role("button", name="Compare", exact=True)
    run.click()
    page.get_by_text("nothing to compare yet").first.wait_for()
    page.get_by_role("tab", name="Ask").click()
    hear_example(page)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Question to compare").fill("What drink is order 28?")
    page.get_by_label("Also memories that need no training").check()
    run.click()
    rows = page.locator("#sxl-compared tbody tr")
    page.wait_for_function(
        "[...document.querySelectorAll('#sxl-compared tbody tr')].every(r => r.lastElementChild.textContent.endsWith(' s'))"
    )
    assert rows.count() == page.locator("#sxl-compared polyline").count() > 1
    assert page.locator("#sxl-compared th[scope=row]", has_text="pool").count() == 1
    shoot(page, "compare")


def test_a_kept_memory_goes_on_answering_without_the_audio(page: playwright.Page, tmp_path: Path) -> None:
    hear(page, DESK)
    said = put(page, "What drink is order 28?", 0)
    with page.expect_download() as kept:
        page.get_by_role("button", name="Download memory").click()
    kept.value.save_as(tmp_path / "kept.sxl")
    page.reload()
    choose_file(page, tmp_path / "kept.sxl")
    says(page, "a memory of 5:19")
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
    says(page, "is loaded")
    offered = page.locator("#sxl-suggestions").get_by_text(
        load_example().suggestions[1]
    )  # in place of the first model's own
    offered.click()  # asks at once
    playwright.expect(page.get_by_test_id("user").first).to_have_text(load_example().suggestions[1])


def test_a_page_closed_in_mid_listening_stops_listening(
    browser: playwright.Browser, address: str, tmp_path: Path
) -> None:
    long = write_sound(tmp_path / "long.wav", 1800)
    with visit(browser, address) as page:
        choose_file(page, long)
        page.locator(".sxl-timeline rect").first.wait_for()
    deadline = time.monotonic() + PATIENCE / 1000
    while [t for t in threading.enumerate() if t.name == "speech-xl-reader"]:
        assert time.monotonic() < deadline, "the recording is still being heard"
        time.sleep(0.2)
