"""The page in a real browser, where there is one (Debian: apt-get install chromium): it works, hostile text is text.

`python -m pytest tests/reports/test_page_in_browser.py`; `python -m tests.instruments.browser` takes pictures.
"""

import json
from dataclasses import replace

import pytest

from tests.instruments import browser
from tests.instruments.browser import Browser
from tests.reports.conftest import explorer_of, parts_of
from tests.reports.test_build import PAYLOADS
from tutelage import visible
from tutelage.reports.build import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.found() is None, reason="no chromium here; Debian: apt-get install chromium"),
]
KINDS = ("source", "position", "rarity", "teacher_confidence", "length")


@pytest.fixture(scope="module")
def chromium():
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def pages(report_with, tmp_path_factory):
    """A page with plain texts, and one whose explorer, table and prompt are hostile."""
    folder = tmp_path_factory.mktemp("pages")
    plain = report_with("plain")
    plain = replace(
        plain,
        transfer=parts_of(plain.transfer, text="plain", kinds=KINDS),
        explorer=explorer_of("word ", students=("student", "other")),
    )
    explored = explorer_of("x", n_texts=1)
    (text,) = explored.texts
    n = len(PAYLOADS)
    places = tuple(replace(text.places[1], at=i) for i in range(1, n))
    hostile = replace(
        explored,
        texts=(replace(text, ids=tuple(range(n)), pieces=tuple(PAYLOADS), places=places),),
        tokens=dict(enumerate(PAYLOADS)),
    )
    return {
        "plain": write_report(folder / "plain.html", plain),
        "hostile": write_report(folder / "hostile.html", replace(report_with("".join(PAYLOADS)), explorer=hostile)),
    }


@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_says_nothing_in_the_console_and_fits_its_width(chromium, pages, width, dark):
    for page in pages.values():
        chromium.open(page, width=width, dark=dark)
        assert chromium.complaints() == []
        assert chromium.value("document.documentElement.scrollWidth") <= width
        assert chromium.value("document.querySelectorAll('.panels svg').length") >= 2
        shown = chromium.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, shown.strip("rgb()").split(","))) < 200) == dark


def test_a_token_is_chosen_by_click_and_by_keys_and_shows_both_distributions(chromium, pages):
    chromium.open(pages["plain"], width=390)
    assert chromium.value("document.querySelector('.beside').hidden") is True
    chromium.click(".tokens [role=option]")
    first = chromium.value("document.querySelector('.beside').innerText")
    assert "KL 0.00 nats: no disagreement" in first
    assert chromium.value("document.querySelectorAll('.expected').length") == 2
    heads = "[...document.querySelectorAll('.expected h4')].map(e => e.textContent)"
    assert chromium.value(heads) == ["teacher", "student"]
    assert chromium.value("document.querySelectorAll('.expected li.true').length") == 2  # rank 11: a row of its own
    assert "<0.01%, rank 11" in first
    for _ in range(4):
        chromium.press("ArrowRight")
    last = chromium.value("document.querySelector('.beside').innerText")
    assert "KL 3.00 nats: very much disagreement" in last
    assert "✓" in chromium.value("getComputedStyle(document.querySelector('.true .token'), '::before').content")
    assert chromium.value("document.activeElement.getAttribute('aria-selected')") == "true"
    assert "teacher word␣ 50.0%" in chromium.value("document.querySelector('.said').textContent")
    chromium.press("Escape")
    assert chromium.value("document.querySelector('.beside').hidden") is True
    assert chromium.complaints() == []


def test_another_student_paints_the_texts_anew(chromium, pages):
    chromium.open(pages["plain"])
    levels = "[...document.querySelector('.tokens').children].map(e => e.className)"
    assert chromium.value(levels) == ["given", "k0", "k1", "k2", "k3", "k4"]
    chromium.value(
        "(() => { const s = document.querySelector('.picker select'); s.selectedIndex = 1;"
        "s.dispatchEvent(new Event('change')); })()"
    )
    assert chromium.value(levels) == ["given", "k3", "k3", "k3", "k4", "k4"]
    assert chromium.value("document.querySelectorAll('.expected h4')[1].textContent") == "other"


def test_hostile_texts_stay_text_also_when_they_are_chosen(chromium, pages):
    chromium.open(pages["hostile"])
    count = "document.querySelectorAll('script, img, iframe, svg, style, link, base, form, object, a').length"
    before = chromium.value(count)
    shown = []
    for n in range(1, len(PAYLOADS)):
        chromium.click(f".tokens span:nth-child({n + 1})")
        shown.append(chromium.value("document.querySelector('.beside mark').textContent"))
        assert chromium.value(count) == before
    assert shown == [visible.token(payload) for payload in PAYLOADS[1:]]
    assert chromium.complaints() == []
    assert not [event for event in chromium.events if event["method"] == "Page.javascriptDialogOpening"]


def test_a_script_that_comes_into_the_page_does_not_run(chromium, pages):
    chromium.open(pages["plain"])
    put = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
    assert chromium.value(f"(() => {{ {put} return window.ran === undefined; }})()") is True
    assert "Content Security Policy" in json.dumps(chromium.complaints())


def test_without_its_script_the_page_still_shows_coloured_texts(chromium, pages):
    chromium._call("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.open(pages["plain"])
        paint = "getComputedStyle(document.querySelectorAll('.tokens span')[5])"
        assert chromium.value(f"{paint}.boxShadow").startswith("rgb")
        assert chromium.value("document.querySelectorAll('.tokens span')[5].title") == "KL 3.00 nats"
        assert chromium.value("document.querySelector('.beside').hidden") is True
    finally:
        chromium._call("Emulation.setScriptExecutionDisabled", {"value": False})
