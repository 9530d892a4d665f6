"""The page of a run in a real Chromium: quiet, alone, as wide as its window, and whole on paper."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import BASH, CHROMIUM, Browser, browser
from support.run_folders import write_run

from grpo_hf.run_report.page import write_report

pytestmark = pytest.mark.skipif(not (CHROMIUM and BASH), reason="needs Debian's chromium, and bash")

# A phone, a tablet and a desk.
WIDTHS = [390, 820, 1400]
# A4 without the margins of the page's own print style, at 96 points to the inch.
PAPER = 688
# What reaches beyond the window, except in boxes that scroll by themselves.
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(element =>
    element.getBoundingClientRect().right > document.documentElement.clientWidth + 1 &&
    !element.closest('.scroll, svg')
).map(element => element.outerHTML.slice(0, 200))"""
HIDDEN = """[...document.querySelectorAll('main *')].filter(element =>
    !element.checkVisibility() && !element.closest('svg, script')
).map(element => element.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def comparison(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Its name is wider than a phone, in a sentence about what the runs were judged by.
    reward = f"/{'home/somebody/' * 5}reward.py:right_words"
    other = tmp_path_factory.mktemp("other") / "demo"
    write_run(other, learning_rate=5e-4, rewards=[reward], eval_reward=reward)
    return write_report([run, other], run.parent / "comparison.html", pictures=False)


@pytest.mark.long
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["one run", "two runs"])
def test_it_opens_quietly_and_fits(
    chromium: Browser, run: Path, comparison: Path, kind: str, width: int, tmp_path: Path
) -> None:
    page = run / "report.html" if kind == "one run" else comparison
    tab = chromium.tab()
    tab.open(page, width)
    assert tab.run("innerWidth") == width
    # The script has put the numbers into the charts.
    titles = tab.run("[...document.querySelectorAll('svg title')].map(each => each.textContent)")
    assert any(title.startswith("step: 1") for title in titles)
    for folded in (True, False):
        assert tab.run(TOO_WIDE) == []
        assert tab.run("document.documentElement.scrollWidth") <= width
        tab.picture(tmp_path / f"{width}-{'folded' if folded else 'open'}.png")
        tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert tab.errors == []
    assert tab.requests == [page.as_uri()]


@pytest.mark.long
def test_all_of_it_is_on_paper(chromium: Browser, run: Path, tmp_path: Path) -> None:
    tab = chromium.tab()
    tab.open(run / "report.html", 820)
    # On the screen much is folded, so that this can fail.
    assert len(tab.run(HIDDEN)) > 10
    pdf = tab.print()
    (tmp_path / "paper.pdf").write_bytes(pdf)
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", pdf)) > 2
    tab.resize(PAPER, "print")
    assert tab.run(HIDDEN) == []
    assert tab.run(TOO_WIDE) == []
    # Paper does not scroll.
    assert tab.run("document.documentElement.scrollWidth") <= PAPER
    cut = """[...document.querySelectorAll('.scroll, .prompt')].filter(element =>
        element.scrollWidth > element.clientWidth + 1 ||
        element.scrollHeight > element.clientHeight + 1
    ).map(element => element.outerHTML.slice(0, 200))"""
    assert tab.run(cut) == []
    shown = tab.run("document.querySelector('main').innerText")
    for text in ("Did it get better?", "Is it gaming the reward?", "Lower its weight.", "KL 17"):
        assert text in shown
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.picture(tmp_path / "paper.png")


class TestWhatIsLookedFor:
    """Each of these would be seen."""

    @pytest.mark.long
    def test_a_request_that_the_page_forbids(
        self, chromium: Browser, run: Path, tmp_path: Path
    ) -> None:
        page = tmp_path / "page.html"
        text = (run / "report.html").read_text()
        page.write_text(text.replace("</body>", '<img src="https://example.com/a.png"></body>'))
        tab = chromium.tab()
        tab.open(page, 820)
        assert any("Content Security Policy" in error for error in tab.errors)

    def test_a_request_an_exception_and_a_wide_box(self, chromium: Browser, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        page.write_text(
            '<body><img src="https://example.com/a.png"><script>missing()</script>'
            '<div style="width: 2000px">wide</div></body>'
        )
        tab = chromium.tab()
        tab.open(page, 820)
        assert "https://example.com/a.png" in tab.requests
        assert any("missing is not defined" in error for error in tab.errors)
        assert tab.run("document.documentElement.scrollWidth") > 820
        assert any("2000px" in found for found in tab.run(TOO_WIDE))
