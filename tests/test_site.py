"""The documentation's site: every page is in it, builds without a warning, and loads nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted(page.name for page in (ROOT / "docs").glob("*.md"))
# A link that a reader may follow is no request.
LOADED = re.compile(r"""<(?:script|img|iframe|source)[^>]+src=["']?(https?:)?//|<link[^>]+//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    # `--strict` ends at a link, an object or a page that is not there.
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_navigation() -> None:
    # The file names classes of Python elsewhere, which this loader does not need to know.
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = re.findall(r"[\w.]+\.md", str(nav))
    assert sorted(named) == PAGES


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loading = []
    for page in site.glob("*.html"):
        if LOADED.search(page.read_text(encoding="utf-8")):
            loading.append(page.name)
    assert loading == []


def test_links_into_the_repository_became_names(site: Path) -> None:
    """The site has no folder above it."""
    for page in site.glob("*.html"):
        assert 'href="../' not in page.read_text(encoding="utf-8"), page.name


def test_examples_of_docstrings_are_code(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    assert '<span class="gp">&gt;&gt;&gt; </span>' in text
    assert "&gt;&gt;&gt;" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL)
