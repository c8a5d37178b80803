"""`make report-pictures REPORT=...`: takes the README's two screenshots of a report. Needs Chromium."""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.training.report.browser import Browser, open_browser

WIDTH_PX = 1280
SHOWN_PX = 1000  # width of the files
MAX_BYTES = 80_000
QUALITY = 78

# File -> where its part of the page begins and ends, from the top, and the largest height in pixels.
PARTS = {
    "report-verdict.webp": ("header", "nav", 580),
    "report-why.webp": ("#why h2", "#why .picture", 700),
}


def take(browser: Browser, first: str, last: str, most_px: int) -> bytes:
    """The part of the page from one element to the end of another, as WebP."""
    top = browser.evaluate(f"document.querySelector('{first}').getBoundingClientRect().top + scrollY")
    bottom = browser.evaluate(f"document.querySelector('{last}').getBoundingClientRect().bottom + scrollY")
    begin = max(0, top - 24)
    height = min(most_px, bottom + 16 - begin)
    clip = {"x": 0, "y": begin, "width": WIDTH_PX, "height": height, "scale": 1}
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(browser.capture(clip=clip))) as image:
        shown = SHOWN_PX, round(image.height * SHOWN_PX / image.width)
        image.convert("RGB").resize(shown, Image.Resampling.LANCZOS).save(
            buffer, "WEBP", quality=QUALITY, method=6
        )
    return buffer.getvalue()


def main(report: Path, folder: Path) -> None:
    """Take both screenshots of a report into a folder."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        open_browser(Path(profile)) as browser,
    ):
        browser.show(report, WIDTH_PX, "light")
        for name, (first, last, most_px) in PARTS.items():
            content = take(browser, first, last, most_px)
            if len(content) > MAX_BYTES:
                sys.exit(f"{name} has {len(content):,} bytes, the limit is {MAX_BYTES:,}: lower QUALITY")
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
