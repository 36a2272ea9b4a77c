"""The page in a real browser: the transcript, the player that it follows, the shelf, and what assistive tools meet.

A recording of chirps is heard by a random model: what it says means nothing, but it has words with times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from speech_xl.chapters import Chapter
from speech_xl.example import load_example
from tests.browsing import (
    chromium,
    hear,
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
SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(words_model(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound") / "talk.wav", 40)


def test_cards_are_searched_played_and_downloaded(
    browser: playwright.Browser, address: str, talk: Path, tmp_path: Path
) -> None:
    with visit(browser, address) as page:
        hear(page, talk)
        page.get_by_text("As recognised while listening").wait_for()
        cards = page.locator(".sxl-card")
        assert cards.count() > 1
        last = cards.last.locator("span").inner_text()
        page.get_by_label("Search the transcript").fill(last.upper())
        playwright.expect(cards.last).to_be_visible()
        playwright.expect(cards.first).to_be_hidden()
        playwright.expect(page.locator("#sxl-found")).to_have_text(re.compile(rf"^\d+ of {cards.count()} segments$"))
        shoot(page, "transcript")
        cards.last.scroll_into_view_if_needed()
        cards.last.click()
        position_is(page, float(cards.last.get_attribute("data-start")))
        with page.expect_download() as saved:
            press(page, "SRT")
        saved.value.save_as(tmp_path / "talk.srt")
        assert saved.value.suggested_filename == "talk.srt" and last in (tmp_path / "talk.srt").read_text()
        page.get_by_label("Search the transcript").fill("nobody says this")
        playwright.expect(page.locator("#sxl-found")).to_have_text("No segment has these words.")
        page.get_by_label("Search the transcript").fill("")
        playwright.expect(page.locator("#sxl-found")).to_be_empty()
        press(page, "Transcribe from memory")
        page.get_by_text("From the memory").wait_for()
        press(page, "As heard")
        page.get_by_text("As recognised while listening").wait_for()


def test_questions_about_the_example_are_offered_with_the_example_alone(
    browser: playwright.Browser, address: str, talk: Path
) -> None:
    with visit(browser, address) as page:
        offered = page.locator("#sxl-suggestions")
        playwright.expect(offered).to_be_visible()
        hear(page, talk)
        playwright.expect(offered).to_be_hidden()
        playwright.expect(page.get_by_placeholder("Ask about what was said")).to_be_visible()
        press(page, "Example")
        playwright.expect(offered).to_be_visible()
        playwright.expect(page.get_by_placeholder(load_example().suggestions[0])).to_be_visible()
        press(page, "Cancel")


def test_the_transcript_follows_the_player_unless_told_not_to(
    browser: playwright.Browser, address: str, talk: Path
) -> None:
    with visit(browser, address) as page:
        hear(page, talk)
        cards = page.locator(".sxl-card")
        for number, follows in ((cards.count() - 1, True), (0, False)):
            page.get_by_label("Follow the player").set_checked(follows)
            start = float(cards.nth(number).get_attribute("data-start"))
            page.evaluate("s => (document.querySelector('#sxl-player audio').currentTime = s)", start + 0.06)
            playwright.expect(cards.nth(number)).to_have_attribute("aria-current", "true")
            assert page.locator(".sxl-card[aria-current]").count() == 1
        page.locator("#sxl-transcript").scroll_into_view_if_needed()
        playwright.expect(cards.last).to_be_in_viewport()  # where it was left
        assert page.locator(".sxl-cursor").is_visible()


def test_the_time_line_seeks_and_shows_what_an_answer_rests_on(
    browser: playwright.Browser, address: str, talk: Path
) -> None:
    with visit(browser, address) as page:
        hear(page, talk)
        put(page, "What is said?", 0)
        assert page.locator(".sxl-timeline rect.evidence").count() > 0
        page.locator(".sxl-card.sxl-rests").first.wait_for()
        track = page.locator(".sxl-track")
        track.scroll_into_view_if_needed()
        box = track.bounding_box()
        track.click(position={"x": box["width"] / 2, "y": 10})
        position_is(page, 20)


def test_a_memory_is_kept_opened_renamed_and_deleted(
    browser: playwright.Browser, address: str, talk: Path, tmp_path: Path
) -> None:
    with visit(browser, address) as page:
        hear(page, talk)
        said = page.locator(".sxl-card").all_inner_texts()
        press(page, "Keep on shelf")
        says(page, "talk is on your shelf")
        page.reload()
        page.get_by_role("tab", name="Shelf").click()
        page.once("dialog", lambda dialog: dialog.accept("Our talk"))
        press(page, "Rename talk")
        with page.expect_download() as saved:
            press(page, "Download Our talk")
        assert saved.value.suggested_filename == "Our talk.sxl"
        shoot(page, "shelf")
        press(page, "Open Our talk")
        says(page, "Our talk: 0:40, from your shelf")
        page.locator(".sxl-card").first.wait_for()
        assert page.locator(".sxl-card").all_inner_texts() == said
        assert page.locator(".sxl-card button").count() == 0  # there is no sound to play
        put(page, "What is said?", 0)
        page.get_by_role("tab", name="Shelf").click()
        page.once("dialog", lambda dialog: dialog.accept())
        press(page, "Delete Our talk")
        page.get_by_text("Nothing is kept yet").wait_for()


def test_a_long_row_of_chapters_scrolls_and_does_not_widen_a_phones_page(
    browser: playwright.Browser, address: str, talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [Chapter(3.0 * n, 3.0 * n + 3, "Library, Margaret, room", n, n + 1) for n in range(12)]
    monkeypatch.setattr("space.session.find_chapters", lambda segments: many)
    with visit(browser, address, viewport={"width": 390, "height": 844}) as page:
        hear(page, talk)
        row = page.locator(".sxl-chapters ol")
        row.wait_for()
        assert row.evaluate("row => row.scrollWidth > row.clientWidth")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, page.evaluate(TOO_WIDE)


TOO_WIDE = """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => `${e.tagName} ${e.id} ${e.className}`).slice(0, 12)"""


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")]
)
def test_axe_finds_nothing_serious(
    browser: playwright.Browser, address: str, talk: Path, name: str, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed").Axe()

    def look(where: str) -> list[str]:
        found = axe.run(page).response["violations"]
        return [f"{where}: {v['id']}: {n['html'][:160]}" for v in found if v["impact"] in SERIOUS for n in v["nodes"]]

    with visit(browser, address, viewport={"width": width, "height": 844}, color_scheme=scheme) as page:
        for question in load_example().suggestions:  # the last that Gradio draws
            page.locator("#sxl-suggestions").get_by_text(question).wait_for()
        wrong = look("start")
        hear(page, talk)
        put(page, "What is said?", 0)
        press(page, "Keep on shelf")
        says(page, "on your shelf")
        wrong += look("asked")
        shoot(page, f"axe_{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for tab in ("Shelf", "Compare", "Model"):
            page.get_by_role("tab", name=tab).click()
            page.get_by_role("tab", name=tab, selected=True).wait_for()
            wrong += look(tab)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (tab, page.evaluate(TOO_WIDE))
        assert not wrong, "\n".join(wrong)
