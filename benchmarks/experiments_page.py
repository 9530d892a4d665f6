"""Write docs/results.md from the records of `benchmarks.experiments` and from their sentences."""

import json
import textwrap
from pathlib import Path
from typing import Any

import yaml

from .common import Row
from .learning_page import rendered

DATA = Path(__file__).parent / "data"
TEMPLATE = DATA / "results.md.jinja"
# Of each experiment: commands, readers, and what a person says who has read the figures.
EXPERIMENTS = DATA / "experiments.yaml"
WIDTH = 120
# Where a number needs no decimals any more.
_LARGE = 10


def experiments() -> dict[str, Row]:
    """Return the experiments by name, in the order of the page."""
    found: dict[str, Row] = yaml.safe_load(EXPERIMENTS.read_text(encoding="utf-8"))
    return found


def write_page(records: Path, docs: Path) -> Path:
    """Write the page, and return it.

    Raises:
        SystemExit: an experiment has no record, or a record is of no experiment.
    """
    names = experiments()
    files = {file.stem: file for file in records.glob("*.json")}
    for name in sorted(files.keys() ^ names.keys()):
        lacks = "record; `--run` makes it" if name in names else f"entry in {EXPERIMENTS.name}"
        raise SystemExit(f"error: {name} has no {lacks}.")
    found = []
    for name, experiment in names.items():
        record = json.loads(files[name].read_text(encoding="utf-8"))
        found.append({**experiment, **record, "name": name, "layout": experiment["tables"]})
    page = docs / "results.md"
    text = rendered(TEMPLATE, found, cells=cells, paragraphs=paragraphs, anchor=anchor)
    page.write_text(text, encoding="utf-8")
    return page


def cells(table: Row) -> list[list[str]]:
    """Return the rows of a table as text."""
    signs = ["+" if column in table["signed"] else "" for column in table["columns"]]
    return [
        [cell_text(cell, sign) for cell, sign in zip(row, signs, strict=True)]
        for row in table["rows"]
    ]


def cell_text(cell: Any, sign: str = "") -> str:
    """Return a cell of a record as text; `experiment_readers.py` says which there are.

    >>> cell_text({"value": 0.3, "low": 0.245, "high": 0.372, "right": 60, "total": 200})
    '60/200 = 0.300 [0.245, 0.372]'
    >>> cell_text({"value": 0.054, "half": 0.078}, "+"), cell_text([0.25, 0.5]), cell_text(16088)
    ('+0.054 ± 0.078', '0.250, 0.500', '16,088')
    """
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list):
        return ", ".join(cell_text(each, sign) for each in cell)
    if isinstance(cell, int):
        return f"{cell:{sign},}"
    if isinstance(cell, float):
        return f"{cell:{sign}.3f}" if abs(cell) < _LARGE else f"{cell:{sign},.0f}"
    counts = f"{cell['right']}/{cell['total']} = " if "right" in cell else ""
    text = counts + cell_text(cell["value"], sign)
    if "half" in cell:
        return f"{text} ± {cell_text(cell['half'])}"
    if "low" in cell:
        return f"{text} [{cell_text(cell['low'], sign)}, {cell_text(cell['high'], sign)}]"
    return text


def paragraphs(text: str) -> str:
    """Return paragraphs, one a line, as the page has them."""
    wrapped = []
    for line in text.strip().splitlines():
        # A link or a command that is broken at a hyphen would be another.
        wrapped += [textwrap.fill(line, WIDTH, break_on_hyphens=False, break_long_words=False)]
    return "\n\n".join(part for part in wrapped if part)


def anchor(title: str) -> str:
    """Return the anchor of a heading, as both GitHub and MkDocs make it."""
    kept = [letter for letter in title.lower() if letter.isalnum() or letter in " -_"]
    return "".join(kept).replace(" ", "-")
