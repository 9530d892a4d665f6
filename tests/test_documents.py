"""What the documents quote is what the source says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAPER = (ROOT / "docs" / "deepseekmath.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
SOURCE = re.compile(r"\]\(\.\./(src/grpo_hf/\w+\.py)\)")


def quotations() -> list[tuple[str, str]]:
    """Each piece of code in the document without gaps, and the file that was named last before
    it.
    """
    found = []
    for block in BLOCK.finditer(PAPER):
        file = SOURCE.findall(PAPER[: block.start()])[-1]
        found += [
            (file, piece.strip("\n"))
            for piece in re.split(r"^\.\.\.\n", block[1], flags=re.MULTILINE)
        ]
    return found


@pytest.mark.parametrize(("file", "piece"), quotations())
def test_every_line_of_code_is_quoted_as_it_stands(file: str, piece: str) -> None:
    assert piece + "\n" in (ROOT / file).read_text(encoding="utf-8")


def test_there_is_something_to_hold_against_the_source() -> None:
    assert len(quotations()) >= 15


@pytest.mark.parametrize(
    "document", sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"]), ids=lambda path: path.name
)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []
