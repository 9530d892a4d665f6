"""What a run logged as curves, gathered in panels: each answers one question about a training."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from ..reporting.headings import HEADINGS
from ..reporting.phases import PREFIX
from .points import Point, metrics_of, points_of, trailing
from .record import Row, RunRecord

# How many times the median a peak is.
_PEAK = 30
# Logged steps that a rate is the mean of.
_RATED = 4
# Where every row is computed, a line at 1 only looks like a broken chart.
_SILENT = {"rows computed": 1.0}
# What says little where several runs are compared.
_LEFT_OUT = {"lengths": ("min", "max"), "clipping": ("low", "high")}


@dataclass(frozen=True)
class Curve:
    """A number over the steps of a run.

    Args:
        run: the name of the run.
        label: what the number is.
    """

    run: str
    label: str
    points: list[Point]


@dataclass(frozen=True)
class Panel:
    """Curves that belong together.

    Args:
        name: for files and links.
        caption: what to look for.
        runs: the names of all runs on the page, also of those that lack these numbers.
        stacked: whether the numbers add up to a whole.
        may_peak: whether a value may be so far above the others that these would lie on the axis.
    """

    name: str
    title: str
    caption: str
    curves: list[Curve]
    runs: tuple[str, ...]
    stacked: bool = False
    may_peak: bool = False


@dataclass(frozen=True)
class _Question:
    """A panel, and which metrics it shows.

    Args:
        name: which of `HEADINGS` it has.
        pattern: of the names of metrics; a group in it is the label.
        labels: of metrics that the pattern has no group for.
    """

    name: str
    pattern: str
    labels: dict[str, str]


_QUESTIONS = (
    _Question(
        "rewards",
        r"reward|rewards/(.+)/mean",
        {"reward": "weighted sum"},
    ),
    _Question(
        "held_out",
        r"eval_reward|eval_rewards/(.+)/mean",
        {"eval_reward": "weighted sum"},
    ),
    _Question(
        "kl",
        r"kl|kl/(median|max|maximum|mean)",
        {"kl": "mean"},
    ),
    _Question(
        "entropy",
        r"entropy",
        {"entropy": "entropy"},
    ),
    _Question(
        "lengths",
        r"completions/(mean|min|max)_length",
        {},
    ),
    _Question(
        "signal",
        r"frac_reward_zero_std|completions/clipped_ratio|signal/kept_fraction",
        {
            "frac_reward_zero_std": "groups without signal",
            "completions/clipped_ratio": "cut off",
            "signal/kept_fraction": "rows computed",
        },
    ),
    _Question(
        "clipping",
        r"clip_ratio/(low|high|region)_mean|cispo_clip_ratio",
        {"cispo_clip_ratio": "clipped"},
    ),
    _Question(
        "gradient",
        r"grad_norm",
        {"grad_norm": "norm"},
    ),
    _Question(
        "schedule",
        r"learning_rate",
        {"learning_rate": "learning rate"},
    ),
    _Question(
        "judged",
        r"rewards/(.+)/judged",
        {},
    ),
    _Question(
        "tools",
        r"tools/(call|failure)_frequency",
        {},
    ),
)


def panels_of(runs: Sequence[RunRecord]) -> list[Panel]:
    """Return the panels that the runs have numbers for, those that matter most first."""
    panels: list[Panel] = []
    names = tuple(run.name for run in runs)
    logged = [(metrics_of(run.steps), metrics_of(run.evaluated)) for run in runs]
    for question in _QUESTIONS:
        curves = []
        for run, (of_steps, of_evaluations) in zip(runs, logged, strict=True):
            if question.name == "held_out":
                curves += list(_curves(question, run.name, run.evaluated, of_evaluations))
            else:
                curves += list(_curves(question, run.name, run.steps, of_steps))
        curves = _without_silent(curves)
        if not _says_something(question.name, curves):
            continue
        may_peak = question.name in ("kl", "gradient")
        panel = Panel(question.name, *HEADINGS[question.name], curves, names, may_peak=may_peak)
        panels += [panel] if len(runs) == 1 else _panel_per_label(panel)
    panels += _time_panels(runs)
    return panels


def _panel_per_label(panel: Panel) -> Iterator[Panel]:
    """Yield a panel for each number, in which the runs lie over each other."""
    curves_of: dict[str, list[Curve]] = {}
    for curve in panel.curves:
        curves_of.setdefault(curve.label, []).append(curve)
    if len(curves_of) == 1:
        yield panel
        return
    for label, curves in curves_of.items():
        values = {value for curve in curves for _, value in curve.points}
        if len(values) == 1 or label in _LEFT_OUT.get(panel.name, ()):
            continue
        name = f"{panel.name}_{slug(label)}"
        yield replace(panel, name=name, title=f"{panel.title}: {label}", curves=curves)


def slug(text: str) -> str:
    """Return a text as a part of the name of a file and of an element of the page.

    >>> slug("a set (2)"), slug("长度")
    ('a_set_2_', '长度')
    """
    return re.sub(r"\W+", "_", text)


def _curves(
    question: _Question, run: str, rows: Sequence[Row], metrics: Sequence[str]
) -> Iterator[Curve]:
    labels: dict[str, str] = {}
    for metric in metrics:
        found = re.fullmatch(question.pattern, metric)
        if found:
            labels[metric] = question.labels.get(metric) or next(filter(None, found.groups()))
    # With a single reward of weight 1 the sum says nothing more.
    sums = [metric for metric in labels if metric in ("reward", "eval_reward")]
    for metric in sums:
        others = [points_of(rows, name) for name in labels if name != metric]
        if others == [points_of(rows, metric)]:
            del labels[metric]
    for metric, label in labels.items():
        points = points_of(rows, metric)
        if points:
            yield Curve(run, label, points)


def _without_silent(curves: Sequence[Curve]) -> list[Curve]:
    """Leave out the numbers that say something only where they are not what they usually are."""
    speaking = set()
    for curve in curves:
        if any(value != _SILENT.get(curve.label) for _, value in curve.points):
            speaking.add(curve.label)
    return [curve for curve in curves if curve.label in speaking]


def _says_something(name: str, curves: Sequence[Curve]) -> bool:
    """Whether there is anything to see; nothing clipped, or all judged, needs no curve."""
    values = set()
    for curve in curves:
        values |= {value for _, value in curve.points}
    if name == "clipping":
        return any(values)
    if name in ("judged", "schedule"):
        return len(values) > 1
    return bool(values)


def _time_panels(runs: Sequence[RunRecord]) -> list[Panel]:
    panels: list[Panel] = []
    phases: list[Curve] = []
    rates: list[Curve] = []
    names = tuple(run.name for run in runs)
    for run in runs:
        phases += phase_curves(run)
        rate = _rate(run)
        if rate:
            rates.append(Curve(run.name, "tokens", rate))
    if phases:
        panels.append(Panel("time", *HEADINGS["time"], phases, names, stacked=True))
    if rates:
        panels.append(Panel("throughput", *HEADINGS["throughput"], rates, names))
    return panels


def phase_curves(run: RunRecord) -> list[Curve]:
    """Return the seconds of each phase of a step; together they are all of it.

    They are means of a few logged steps, because several steps may share a rollout.
    """
    timed = []
    names: dict[str, None] = {}
    for row in run.steps:
        whole = row.get("step_time")
        if not isinstance(whole, int | float):
            continue
        parts = {}
        for metric, value in row.items():
            if metric.startswith(PREFIX) and isinstance(value, int | float):
                parts[metric.removeprefix(PREFIX)] = float(value)
        names.update(dict.fromkeys(parts))
        timed.append((float(row["step"]), parts, max(0.0, whole - sum(parts.values()))))
    rest = "update" if names else "step"
    curves = []
    for name in [*names, rest]:
        points = []
        for step, parts, left in timed:
            # Areas lie on each other where all have the same steps: a phase may begin later.
            points.append((step, left if name == rest else parts.get(name, 0.0)))
        curves.append(Curve(run.name, name, trailing(points, _RATED)))
    return curves if timed else []


def _rate(run: RunRecord) -> list[Point]:
    """Return tokens per second, over the last few logged steps.

    A logged step may hold one rollout more than the next, where several steps share a rollout.
    """
    rates: list[Point] = []
    seconds: list[float] = []
    tokens: list[float] = []
    start: Row = {"step": 0, "num_tokens": 0.0}
    known = [row for row in run.steps if row.get("num_tokens") and row.get("step_time")]
    for before, row in pairwise([start, *known]):
        seconds.append((row["step"] - before["step"]) * row["step_time"])
        tokens.append(row["num_tokens"] - before["num_tokens"])
        taken = sum(seconds[-_RATED:])
        if taken > 0:
            rates.append((float(row["step"]), sum(tokens[-_RATED:]) / taken))
    return rates


def usual_value(curves: Sequence[Curve]) -> float | None:
    """Return the lowest median of curves with values far above it, better seen in logarithms.

    Returns:
        None where no value is so far above it.
    """
    values = []
    medians = []
    for curve in curves:
        own = [value for _, value in curve.points]
        values += own
        medians.append(median(own))
    # Of the lowest curve, which would lie on the axis under the peaks of another one.
    usual = min((each for each in medians if each > 0), default=0.0)
    # A KL of nothing is rounded to either side of 0.
    is_peaked = usual > 0 and min(values) >= -usual and max(values) > _PEAK * usual
    return usual if is_peaked else None


def all_numbers(run: RunRecord) -> list[dict[str, Any]]:
    """Return first, last, lowest and highest value of everything that was logged."""
    rows = []
    for metric in metrics_of(run.steps):
        points = points_of(run.steps, metric)
        if metric != "step" and points:
            values = [value for _, value in points]
            rows.append(
                {
                    "name": metric,
                    "first": values[0],
                    "last": values[-1],
                    "low": min(values),
                    "high": max(values),
                }
            )
    return sorted(rows, key=lambda row: str(row["name"]))
