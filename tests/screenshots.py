"""`python -m tests.screenshots`: docs/images, from the example as `small` hears and answers it. Needs a Chromium.

One visitor on three kinds of screen: what is shown is what the page did, nothing is drawn for the picture.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from speech_xl.example import load_example
from speech_xl.model import SpeechModel
from tests.browsing import chromium, playwright, press, says, serve, visit

IMAGES = Path(__file__).parent.parent / "docs" / "images"
LARGEST = 200_000  # bytes of a picture
HOUR = 3_600_000  # ms: two busy cores may need minutes to hear five of them


def take(page: playwright.Page, name: str) -> None:
    path = IMAGES / f"{name}.png"
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")  # after a change of width
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=path, full_page=True, animations="disabled")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path} is larger than {LARGEST / 1000:.0f} kB.")


def main() -> None:
    pages = serve(SpeechModel.load("small"))
    with chromium() as browser, visit(browser, next(pages)) as page:
        page.set_default_timeout(HOUR)
        press(page, "Example")
        says(page, "heard, all of it")
        for number, question in enumerate(load_example().suggestions[:2]):
            page.locator("#sxl-suggestions").get_by_text(question).click()
            page.get_by_test_id("bot").nth(number).wait_for()
            page.locator(".sxl-card.sxl-rests").first.wait_for()
            playwright.expect(page.get_by_label("Question", exact=True)).to_have_value("")
        take(page, "page")
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("document.body.classList.contains('dark')")
        take(page, "dark")
        page.emulate_media(color_scheme="light")
        page.wait_for_function("!document.body.classList.contains('dark')")
        page.set_viewport_size({"width": 390, "height": 844})
        take(page, "phone")
    pages.close()


if __name__ == "__main__":
    main()
