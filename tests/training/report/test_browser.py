"""The report in a real browser: on a phone and a desk, light and dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.bundle import Bundle
from tests.training.report.browser import Browser, chromium, open_browser

TOO_WIDE = """
[...document.querySelectorAll('body *')]
  .filter(each => !each.closest('.scroll') && !each.closest('.album') && !each.closest('.chart svg'))
  .filter(each => each.getBoundingClientRect().right > innerWidth + 1)
  .map(each => each.outerHTML.slice(0, 120))
"""
INVISIBLE = """
[...document.querySelectorAll('.photo, .chart > svg')]
  .filter(each => each.getBoundingClientRect().width < 20).length
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser without a window."""
    if chromium() is None:
        pytest.skip("no Chromium on the PATH")
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_asks_for_nothing(
    digits_bundle: Bundle, browser: Browser, width: int, scheme: str
) -> None:
    """No horizontal scrolling, no error, no request, and every picture has a size."""
    browser.show(digits_bundle.folder / "report" / "report.html", width, scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(TOO_WIDE) == []
    assert browser.evaluate("document.querySelectorAll('.photo').length") > 100
    assert browser.evaluate(INVISIBLE) == 0
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 22, 27)")
    requests = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [
        (digits_bundle.folder / "report" / "report.html").as_uri()
    ]
    logged = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert not [event for event in browser.events if event["method"] in logged]


def test_on_paper_the_page_is_light(digits_bundle: Bundle, browser: Browser) -> None:
    """Also for those who read in the dark."""
    browser.show(digits_bundle.folder / "report" / "report.html", 794, "dark")
    browser.call(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    ink = browser.evaluate("getComputedStyle(document.body).color")
    assert ink == "rgb(28, 39, 51)"
    browser.call("Emulation.setEmulatedMedia", media="")


def test_the_test_finds_what_it_looks_for(tmp_path: Path, browser: Browser) -> None:
    """A wide element, a request and an error."""
    page = tmp_path / "page.html"
    page.write_text(
        "<body style='margin:0'><div style='width:3000px'>x</div><img src='missing.png'>"
        "<script>console.error('no'); throw new Error('no')</script>"
    )
    browser.show(page, 390, "light")
    assert browser.evaluate("document.documentElement.scrollWidth") == 3000
    assert browser.evaluate(TOO_WIDE)
    methods = [event["method"] for event in browser.events]
    assert methods.count("Network.requestWillBeSent") == 2
    assert {"Runtime.exceptionThrown", "Runtime.consoleAPICalled"} <= set(methods)
