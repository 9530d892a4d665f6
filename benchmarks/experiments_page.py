"""Write docs/results.md from the records of `benchmarks.experiments` and from their sentences."""

import json
import re
import textwrap
from collections.abc import Callable
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
# A link or a flag that is broken at a hyphen would be another.
AS_THEY_ARE: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}
# In the place of a space where no line may end.
_HELD = "\0"


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
        found.append({**experiment, **record, "name": name})
    page = docs / "results.md"
    filters: dict[str, Callable[..., Any]] = {"cells": cells, "origin": origin, "anchor": anchor}
    filters |= {"paragraphs": paragraphs, "command_lines": command_lines}
    text = rendered(TEMPLATE, found, **filters)
    page.write_text(text, encoding="utf-8")
    return page


def origin(record: Row) -> str:
    """Return a sentence of commit, machine, time and seeds, as far as they were written down."""
    machine = record["machine"]
    parts = [f"Commit {machine['commit']}" if machine["commit"] else "The commit was not noted"]
    parts += [machine[part] for part in ("cpu", "accelerator") if machine.get(part)]
    if "threads" in machine:
        parts.append("1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads")
    if "versions" in machine:
        parts.append(f"torch {machine['versions']['torch']}, TRL {machine['versions']['trl']}")
    if "took" in record:
        parts.append(f"{record['took']['cpu'] / 60:.1f} minutes of CPU time")
    seeds = ", ".join(map(str, record["seeds"]))
    text = f"{', '.join(parts)}; seed{'s' if len(record['seeds']) > 1 else ''} {seeds}."
    # What our evaluation has had since is Jeffreys', as the head of the page says.
    return f"{text} Intervals are {record['shares']}'s." if "shares" in record else text


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
    # Code in a line stays on it.
    whole = re.sub("`[^`]*`", lambda code: code[0].replace(" ", _HELD), text.strip())
    lines = [textwrap.fill(line, WIDTH, **AS_THEY_ARE) for line in whole.splitlines()]
    return "\n\n".join(lines).replace(_HELD, " ")


def command_lines(command: str) -> str:
    """Return a command as a block of code, on as many lines as it needs."""
    # A flag keeps its value, or the first of its values.
    whole = re.sub(r"( --\w+) (?!-)", rf"\1{_HELD}", command)
    indents: dict[str, Any] = {"initial_indent": " " * 4, "subsequent_indent": " " * 8}
    lines = textwrap.wrap(whole, WIDTH - len(" \\"), **indents, **AS_THEY_ARE)
    return " \\\n".join(lines).replace(_HELD, " ")


def anchor(title: str) -> str:
    """Return the anchor of a heading, as both GitHub and MkDocs make it."""
    kept = [letter for letter in title.lower() if letter.isalnum() or letter in " -_"]
    return "".join(kept).replace(" ", "-")
