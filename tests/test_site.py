"""The documentation's site: every page is in it, builds without a warning, and loads nothing."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import pytest
import yaml

from grpo_hf.runs.settings import all_settings

ROOT = Path(__file__).parents[1]
PAGES = {page.name for page in (ROOT / "docs").glob("*.md")}
# Made when the site is built: docs/_hooks.py.
MADE = "all_settings.md"
WORD = re.compile(r"[A-Za-z]{3,}")
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
    assert sorted(named) == sorted(PAGES | {MADE})


@pytest.mark.long
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loading = []
    for page in site.glob("*.html"):
        if LOADED.search(page.read_text(encoding="utf-8")):
            loading.append(page.name)
    assert loading == []


@pytest.mark.long
def test_links_into_the_repository_became_names(site: Path) -> None:
    """The site has no folder above it."""
    for page in site.glob("*.html"):
        assert 'href="../' not in page.read_text(encoding="utf-8"), page.name


def test_the_first_page_leads_to_the_others(site: Path) -> None:
    """What a newcomer reads next is a click away."""
    text = (site / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"#:]+\.(?:html|ipynb))', text.partition("<article")[2])
    assert {"first_task.html", "rewards.html", "first_run.ipynb"} <= set(links)
    assert [link for link in links if not (site / link).is_file()] == []


def test_every_setting_is_explained(site: Path) -> None:
    """On a page of the site, with its type, its default and its text."""
    text = (site / "all_settings.html").read_text(encoding="utf-8")
    missing = []
    for name, setting in all_settings().items():
        # A heading has an address of its own, to which other pages may lead.
        entry = text.partition(f'<h3 id="{name}">')[2].partition("<h3")[0]
        read = " ".join(html.unescape(re.sub(r"<[^>]+>", "", entry)).split())
        kind = " or ".join(map(str, setting.choices)) or setting.kind
        # Words alone: backticks and addresses of links are not shown.
        words = set(WORD.findall(re.sub(r"\]\(\S+\)", "", setting.text)))
        if f"{kind}; default {setting.default}" not in read or words - set(WORD.findall(read)):
            missing.append(name)
    assert missing == []


def used_in_python() -> list[str]:
    """Return the full names of what the pages import, or name with module and all."""
    names = []
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        text = page.read_text(encoding="utf-8")
        for module, imported in re.findall(r"from (grpo_hf[\w.]*) import ([\w, ]+)", text):
            names += [f"{module}.{name.strip()}" for name in imported.split(",")]
        names += re.findall(r"`(grpo_hf(?:\.\w+){2,})[`(]", text)
    return sorted(set(names))


def test_what_the_pages_use_is_in_the_reference(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    missing = []
    for name in used_in_python():
        thing = resolve_name(name)
        if not isinstance(thing, ModuleType):
            home = f"{thing.__module__}.{thing.__qualname__}"
            if f'id="{home}"' not in text:
                missing.append(name)
    assert missing == []


def test_examples_of_docstrings_are_code(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    assert '<span class="gp">&gt;&gt;&gt; </span>' in text
    assert "&gt;&gt;&gt;" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL)
