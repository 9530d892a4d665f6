"""The figures of a model card: its tables, and the results that the Hub reads."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.overlap_text import overlap_text
from ..evaluation.cut_answers import CutAnswers
from ..evaluation.part_marks import PartMarks
from ..run_files import EVALUATIONS, HELD_OUT, HELD_OUT_SET

Evaluation = dict[str, Any]
# Where the summary of a side has the share of greedy answers that are right.
_ACCURACY = ["accuracy"]


def evaluations_of(folder: Path) -> list[Evaluation]:
    """Return the summaries of a run's evaluations, by the name of their data."""
    found = []
    for file in sorted(folder.glob(f"{EVALUATIONS}/*.json")):
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # An evaluation that is being written; the next card has it.
            continue
        if isinstance(summary, dict) and "adapter" in summary:
            found.append(summary)
    return found


def evaluation_rows(
    evaluations: Sequence[Evaluation], results: dict[str, Any]
) -> list[tuple[str, ...]]:
    """Return the rows of the table of evaluations: each set of data with each measure.

    Args:
        results: of the comparison at the end of the run, whose table has its accuracy already.
    """
    rows = []
    for summary in evaluations:
        for label, *path in _measures(summary):
            if path == _ACCURACY and _repeats(summary, results):
                continue
            cells = [set_name(summary), str(summary["problems"]), label]
            for side, sign in (("base", ""), ("adapter", ""), ("difference", "+")):
                cells.append(_with_interval(_at(summary.get(side), path), sign))
            rows.append(tuple(cells))
    return rows


def set_name(summary: Evaluation) -> str:
    """Return the name of an evaluation's data, as a reader of the card understands it."""
    return HELD_OUT if _is_held_out(summary) else str(summary["set"])


def _is_held_out(summary: Evaluation) -> bool:
    return bool(summary["set"] == HELD_OUT_SET)


def _repeats(summary: Evaluation, results: dict[str, Any]) -> bool:
    """Whether an evaluation found what the run's own comparison did, on as many prompts."""
    if not results or not _is_held_out(summary):
        return False
    if summary["problems"] != results["adapter"]["total"]:
        return False
    for side in ("base", "adapter"):
        found = _at(summary.get(side), _ACCURACY) or {}
        own = results[side]["right"] / results[side]["total"]
        # The one was written with the digits of a mean, the other is counted.
        if not math.isclose(found.get("value") or 0.0, own, abs_tol=1e-9):
            return False
    return True


def evaluation_notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a sentence on each set whose problems were trained on."""
    notes = []
    for summary in evaluations:
        name = set_name(summary)
        what = name if _is_held_out(summary) else f"prompts of {name}"
        notes.append(overlap_text(summary.get("in_training"), summary["problems"], what))
    return [note for note in notes if note is not None]


def _measures(summary: Evaluation) -> list[tuple[str, ...]]:
    """Return the name of each measure, and where it is in the summary of a side.

    Of pass@k the smallest and the largest k, of maj@k the largest.
    """
    measures: list[tuple[str, ...]] = [("accuracy, greedy", *_ACCURACY)]
    for name, which in (("pass_at", (0, -1)), ("maj_at", (-1,))):
        ks = sorted(summary["adapter"].get(name) or {}, key=int)
        for k in dict.fromkeys(ks[place] for place in which if ks):
            measures.append((f"{name.removesuffix('_at')}@{k}", name, k))
    return measures


def _at(values: Any, path: Sequence[str]) -> dict[str, float] | None:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _with_interval(share: dict[str, float] | None, sign: str) -> str:
    if not share or share.get("value") is None:
        return ""
    shown = [f"{share[name]:{sign}.3f}" for name in ("value", "low", "high")]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def result_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the comparison with the base at the end of a run."""
    if not results:
        return []
    rows: list[tuple[str, ...]] = []
    # Interval and paired difference: with few prompts two accuracies alone say little.
    for name, share in (("base", results["base"]), ("with this adapter", results["adapter"])):
        accuracy = f"{share['right'] / share['total']:.3f}"
        rows.append((name, accuracy, f"{share['low']:.3f} to {share['high']:.3f}"))
    interval = f"{results['low']:+.3f} to {results['high']:+.3f}"
    rows.append(("difference (paired)", f"{results['difference']:+.3f}", interval))
    return rows


def answer_lines(results: dict[str, Any], evaluations: Sequence[Evaluation]) -> list[str]:
    """Return how many answers of each comparison were cut off, and what a gain may be."""
    lines = []
    sets: list[tuple[str, Any, Any]] = []
    if results:
        sets.append((HELD_OUT, results, results))
    for summary in evaluations:
        difference = (summary.get("difference") or {}).get("accuracy")
        sets.append((set_name(summary), summary, difference))
    for place, found, interval in sets:
        # At the beginning of a sentence.
        name = place.capitalize() if place == HELD_OUT else place
        part = PartMarks.of(found.get("part") or found.get("part_marks"))
        if part is not None and interval and part.doubt(interval["low"]):
            lines.append(f"{name}: {part.said(interval['low'])}.")
        cut = CutAnswers.of(found.get("cut"))
        if cut is None or not cut.line:
            continue
        doubt = cut.doubt(interval["low"], interval["high"]) if interval else ""
        lines.append(f"{name}: {cut.line}.{f' Beware: {doubt}.' if doubt else ''}")
    # An evaluation of the held-out prompts may repeat the comparison.
    return list(dict.fromkeys(lines))


def evaluation_results(
    card: dict[str, Any], evaluations: Sequence[Evaluation], data: str
) -> list[dict[str, Any]]:
    """Return the results for the metadata, as arguments of the Hub's `EvalResult`.

    Args:
        card: with the comparison at the end of the run.
        data: the repository or the name of the run's data.
    """
    found = []
    results = card["results"]
    held_out = f"{data}, held out"
    if results and not any(_repeats(summary, results) for summary in evaluations):
        share = results["adapter"]
        base = results["base"]["right"] / results["base"]["total"]
        value = round(share["right"] / share["total"], 4)
        interval = [share["low"], share["high"]]
        result = _result(held_out, data, "accuracy", value, interval, base)
        found.append(_with_overlap(result, results))
    for summary in evaluations:
        for label, *path in _measures(summary):
            here, base = _at(summary["adapter"], path), _at(summary.get("base"), path)
            if here and here.get("value") is not None:
                interval = [here["low"], here["high"]]
                of_base = base.get("value") if base else None
                names = (held_out, data) if _is_held_out(summary) else (str(summary["set"]),) * 2
                result = _result(*names, label, here["value"], interval, of_base)
                found.append(_with_overlap(result, summary))
    return found


def _with_overlap(result: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Add how many prompts were trained on: who reads metadata does not see the sentence."""
    if measured.get("in_training"):
        result["metric_args"]["prompts_in_training_data"] = measured["in_training"]
    return result


def _result(
    name: str, kind: str, metric: str, value: float, interval: list[float], base: float | None
) -> dict[str, Any]:
    low, high = (round(bound, 4) for bound in interval)
    facts: dict[str, Any] = {"interval_95": [low, high]}
    if base is not None:
        facts["base_model"] = round(base, 4)
    return {
        "task_type": "text-generation",
        "dataset_type": kind,
        "dataset_name": name,
        "metric_type": metric.partition(",")[0],
        "metric_name": metric,
        "metric_value": round(value, 4),
        "metric_args": facts,
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = []
    for cells in [header, ("---",) * len(header), *rows]:
        # A bar in a cell would begin the next cell, and a newline the next row.
        escaped = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
        lines.append("| " + " | ".join(escaped) + " |")
    return "\n".join(lines)
