"""The summaries of an evaluation as tables of a terminal."""

import shlex
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..data.completions import last_said
from ..data.overlap_text import overlap_text
from ..run_files import read_lines, reason_of
from .cut_answers import CutAnswers
from .part_marks import PartMarks
from .problem_set import SIDES
from .telling import cannot_tell

# Flips whose texts are shown, and characters of a text.
_SHOWN_FLIPS = 1
_SHOWN_CHARACTERS = 300


def summary_table(summary: dict[str, Any]) -> Table:
    """Return accuracies, pass@k and maj@k of both sides, with their paired differences."""
    table = _table(
        f"{summary['set']}: {summary['problems']} problems; right: full mark of {summary['reward']}"
    )
    table.add_column("")
    for column in ("base", "adapter", "difference (paired)"):
        table.add_column(column, justify="right")
    for label, name, k in _rows_of(summary):
        cells = []
        for side in ("base", "adapter", "difference"):
            estimate = summary[side][name]
            sign = "+" if side == "difference" else ""
            cells.append(_cell(estimate if k is None else estimate[k], sign))
        table.add_row(label, *cells)
    return table


def category_table(summary: dict[str, Any]) -> Table | None:
    """Return the greedy accuracies by category, or None where the data has no categories."""
    categories = summary["by_category"]
    if not categories:
        return None
    table = _table(f"{summary['set']}, greedy, by {summary['category']}")
    table.add_column("category")
    table.add_column("n", justify="right")
    for column in ("base", "adapter", "difference (paired)"):
        table.add_column(column, justify="right")
    for category, found in categories.items():
        sides = f"{found['base']['value']:.3f}", f"{found['adapter']['value']:.3f}"
        table.add_row(category, str(found["problems"]), *sides, _cell(found["difference"], "+"))
    return table


def _table(title: str) -> Table:
    # Without lines between the columns, three numbers with intervals fit into 80 characters.
    return Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False
    )


def report_of(summary: dict[str, Any], folder: Path) -> Group:
    """Return all that the terminal shows of a set.

    Args:
        folder: that holds the answers.
    """
    if not summary["problems"]:
        return Group(Text(f"{summary['set']}: the reward failed on every problem."))
    parts: list[Any] = [summary_table(summary)]
    overlap = overlap_text(summary.get("in_training"), summary["problems"], "prompts")
    base, adapter = (summary[side]["accuracy"]["value"] for side in SIDES)
    alike = cannot_tell(base, adapter, summary["reward"])
    for said in (overlap, alike):
        if said is not None:
            parts.append(Text(f"note: {said}"))
    by_category = category_table(summary)
    if by_category is not None:
        parts.append(by_category)
    # The evaluations of a run are a folder in it.
    parts += _cut_off(summary, folder.parent)
    part = PartMarks.of(summary.get("part_marks"))
    if part is not None:
        parts.append(Text(part.said(summary["difference"]["accuracy"]["low"])))
    answers = folder / f"{summary['set']}.jsonl"
    parts += _flips(summary["flips"], answers)
    if summary["samples"] and not summary["base"]["maj_at"]:
        parts.append(
            Text(
                "no maj@k: the reward does not say which answers are the same (docs/evaluation.md)"
            )
        )
    parts.append(Text(f"answers: {answers}\n"))
    return Group(*parts)


def _rows_of(summary: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """Return label, name and k of each row: of pass@k and maj@k the powers of two, and n."""
    rows: list[tuple[str, str, str | None]] = [("greedy", "accuracy", None)]
    samples = summary["samples"]
    shown = []
    k = 1
    while k < samples:
        shown.append(k)
        k *= 2
    if samples:
        shown.append(samples)
    for name, label in (("pass_at", "pass@"), ("maj_at", "maj@")):
        for k in shown:
            # maj@1 is pass@1.
            if summary["base"][name] and (name, k) != ("maj_at", 1):
                rows.append((f"{label}{k}", name, str(k)))
    return rows


def _cut_off(summary: dict[str, Any], run: Path) -> list[Text]:
    """Return how many answers were cut off, and what of the difference that may explain."""
    cut = CutAnswers.of(summary.get("cut"))
    if cut is None or not cut.line:
        return []
    parts = [Text(cut.line)]
    difference = summary["difference"]["accuracy"]
    doubt = cut.doubt(difference["low"], difference["high"])
    if doubt:
        parts.append(Text(f"note: {doubt}. {cut.cure(shlex.quote(str(run)))}"))
    return parts


def _cell(estimate: dict[str, float], sign: str = "") -> str:
    value, low, high = (format(estimate[key], f"{sign}.3f") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _flips(flips: dict[str, list[int]], answers: Path) -> list[Text]:
    """Return how many answers flipped, and the texts of the first of each kind."""
    gained, lost = flips["gained"], flips["lost"]
    parts = [Text(f"wrong to right: {len(gained)} answers; right to wrong: {len(lost)}")]
    wanted = set(gained[:_SHOWN_FLIPS] + lost[:_SHOWN_FLIPS])
    if not wanted:
        return parts
    try:
        lines = read_lines(answers)
    except OSError as error:
        # The numbers are known, and other processes go on.
        return [*parts, Text(f"{answers} cannot be read ({reason_of(error)}).")]
    for line in lines:
        if line["row"] in wanted:
            kind = "wrong to right" if line["row"] in gained else "right to wrong"
            parts.append(Text(f"prompt {line['row'] + 1}, {kind}:", style="bold"))
            parts.append(Text(f"  asked:   {short(last_said(line['prompt']))}"))
            for side in ("base", "adapter"):
                cut = " (cut off)" if line[side].get("greedy_cut") else ""
                parts.append(Text(f"  {side + ':':9}{short(line[side]['greedy'])}{cut}"))
    return parts


def short(text: str) -> str:
    """Return a text in one line, cut where it is too long to read among others."""
    one_line = " ⏎ ".join(part for part in text.strip().splitlines() if part.strip())
    if len(one_line) > _SHOWN_CHARACTERS:
        return one_line[:_SHOWN_CHARACTERS] + " …"
    return one_line
