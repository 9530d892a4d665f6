"""What the documents name exists: files, functions, and every file of the library in one list."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ROOT / "docs" / "files.md"
PAPER = ROOT / "docs" / "deepseekmath.md"
DOCUMENTS = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])

TARGET = re.compile(r"\]\((?!https?:|#)([^)#]+)")
# A function, a class or `Class.method`, and the file that it is said to be in.
FUNCTION = re.compile(r"\[`([A-Za-z_]\w*(?:\.(?!py`)\w+)?)`\]\((?!https?:)([^)#]+\.py)\)")
# A file by its path from the root, from the library's folder, or from another folder of ours.
PATH = re.compile(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|yaml|json|md))`")
ENTRY = re.compile(r"^- \[`[\w.]+`\]\(\.\./([^)]+)\): (.+)$", re.MULTILINE)
HEADING = re.compile(r"^## .*\]\(\.\./([^)]+)\)$", re.MULTILINE)

ENOUGH_FUNCTIONS = 20
LONGEST_PHRASE = 12


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def defined_in(file: Path) -> set[str]:
    """The functions and classes of a file, and the methods of its classes as `Class.method`."""
    names = set()
    for node in ast.parse(text_of(file)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    names.add(f"{node.name}.{part.name}")
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = TARGET.findall(text_of(document))
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_functions_are_defined_where_the_link_leads(document: Path) -> None:
    missing = []
    for name, target in FUNCTION.findall(text_of(document)):
        if name not in defined_in(document.parent / target):
            missing.append(f"{name} in {target}")
    assert missing == []


def test_the_equations_are_linked_to_functions() -> None:
    assert len(set(FUNCTION.findall(text_of(PAPER)))) >= ENOUGH_FUNCTIONS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    missing = []
    for path in PATH.findall(text_of(document)):
        # What a user or a run makes is no file of ours, and NAME stands for a name to choose.
        is_example = path.startswith(("./", "runs/", "iteration-")) or "NAME" in path
        places = (ROOT / path, ROOT / "src" / "grpo_hf" / path)
        if not is_example and not any(place.exists() for place in places):
            missing.append(path)
    assert missing == []


def test_every_file_is_listed_once() -> None:
    text = text_of(FILES)
    listed = [path for path, _ in ENTRY.findall(text)] + HEADING.findall(text)
    expected = {f"rewards/{file.name}" for file in (ROOT / "rewards").glob("*.py")}
    for file in (ROOT / "src" / "grpo_hf").rglob("*.py"):
        expected.add(file.relative_to(ROOT).as_posix())
    missing = expected - set(listed)
    assert not missing, f"docs/files.md does not list {sorted(missing)}"
    assert len(listed) == len(set(listed))


def test_the_purpose_of_a_file_is_a_short_phrase() -> None:
    long = []
    for path, phrase in ENTRY.findall(text_of(FILES)):
        if len(phrase.split()) > LONGEST_PHRASE:
            long.append(path)
    assert long == []
