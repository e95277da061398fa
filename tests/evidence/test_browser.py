"""The pages as a browser shows them: nothing fetched, no error, readable wide, narrow, dark and in
print. Needs Debian's chromium and chromium-driver.
"""

import base64
import io

import numpy as np
import pytest
from matplotlib.image import imread

from browser import CHROMIUM, DRIVER, Browser
from flagtrl.evidence.page import PAGE_FILE
from pages import replicated, reported, walked

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (apt install chromium-driver)"
)
WIDE, NARROW = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


PAGES = ["a run's", *(pytest.param(p, marks=pytest.mark.slow) for p in ("the tables'", "a walk's"))]


@pytest.fixture(scope="module", params=PAGES)
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    if request.param == "a walk's":
        walked(folder)
        return folder
    return reported(folder) if request.param == "a run's" else replicated(folder)


def shown(browser, page, size, dark=False):
    """Load a page as a device of that size does; what it fetched, and what the console said."""
    browser.log("browser"), browser.events()
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.devtools("Emulation.setDeviceMetricsOverride", **metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.devtools("Emulation.setEmulatedMedia", features=scheme)
    browser.get((page / PAGE_FILE).as_uri())
    fetched = [
        each["params"]["request"]["url"]
        for each in browser.events()
        if each["method"] == "Network.requestWillBeSent"
    ]
    return fetched, browser.log("browser")


def pixels(browser):
    """(height, width, 3) of what is on the screen, 0 to 1."""
    return imread(io.BytesIO(browser.screenshot()), format="png")[..., :3]


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_fetches_nothing_says_nothing_and_fits(browser, page, size, dark):
    fetched, said = shown(browser, page, size, dark)
    assert [url for url in fetched if not url.startswith("data:")] == [(page / PAGE_FILE).as_uri()]
    assert said == []
    width = browser.script("return document.documentElement.scrollWidth")
    assert width <= size[0], "the page itself does not scroll sideways; its tables do"
    background = pixels(browser)[-1, -1].mean()
    assert background < 0.2 if dark else background > 0.9


def test_figures_and_tables_are_there_to_be_seen(browser, page):
    shown(browser, page, WIDE)
    boxes = browser.script(
        "return [...document.querySelectorAll('svg, table')].map(each => {"
        "const b = each.getBoundingClientRect(); return [each.tagName, b.width, b.height]})"
    )
    figures = [(w, h) for name, w, h in boxes if name == "svg"]
    tables = [(w, h) for name, w, h in boxes if name == "TABLE"]
    assert len(figures) >= 2 and all(w > 500 and h > 50 for w, h in figures)
    assert len(tables) >= 1 and all(w > 300 and h > 40 for w, h in tables)
    labels = browser.script(
        "return [...document.querySelectorAll('svg')].map(each => each.getAttribute('aria-label'))"
    )
    assert all(label and len(label) > 10 for label in labels)


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_background(browser, page, dark):
    """Contrast of at least 4.5, as the Web Content Accessibility Guidelines ask (1.4.3)."""
    shown(browser, page, WIDE, dark)
    pairs = browser.script(
        "const found = []; const seen = new Set();"
        "for (const each of document.querySelectorAll('p, li, td, th, dt, dd, h1, h2, svg text')) {"
        "  const style = getComputedStyle(each); let back = each, colour = 'rgba(0, 0, 0, 0)';"
        "  while (back && colour === 'rgba(0, 0, 0, 0)') {"
        "    colour = getComputedStyle(back).backgroundColor; back = back.parentElement }"
        "  const text = each.tagName === 'text' ? style.fill : style.color;"
        "  if (!seen.has(text + colour)) { seen.add(text + colour); found.push([text, colour]) } }"
        "return found"
    )
    assert len(pairs) >= 2
    for text, colour in pairs:
        one, other = (luminance(each) + 0.05 for each in (text, colour))
        assert max(one, other) / min(one, other) >= 4.5, (text, colour)


def luminance(colour):
    """Relative luminance of `rgb(r, g, b)`, as the guidelines define it."""
    parts = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [
        c / 12.92 if (c := p / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_it_prints(browser, page):
    shown(browser, page, WIDE)
    printed = browser.devtools("Page.printToPDF", printBackground=True)
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF") and len(content) > 20_000
