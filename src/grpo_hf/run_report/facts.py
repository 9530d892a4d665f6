"""Numbers of a run: its evaluations, its figures, its settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..data.overlap_text import overlap_text
from ..evaluation.common_gold import said_of_common_gold
from ..evaluation.cut_answers import CutAnswers, Marked
from ..evaluation.part_marks import PartMarks
from ..evaluation.statistics import compare
from ..run_files import HELD_OUT, HELD_OUT_SET
from .points import number_text, points_of
from .record import Row, RunRecord

# Of settings, what says where a run lies and not what it does.
_OF_ONE_RUN = ("output_dir", "logging_dir", "run_name", "hub_model_id", "resume_from_checkpoint")
# Smaller than a KL that tells two policies in float32 apart.
_ROUNDING = 1e-7
# The first and the last part of a run that a figure compares: so many of them are in it.
_EDGE = 8
_MINUTE = 60
_HOUR = 3600


@dataclass(frozen=True)
class Interval:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Any) -> "Interval | None":
        """Return the interval that a file holds, or None."""
        try:
            return cls(float(row["value"]), float(row["low"]), float(row["high"]))
        except (TypeError, KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Result:
    """Base against adapter on one set of problems.

    Args:
        at_k: rows of pass@k and maj@k, as `result_charts.at_k_chart` takes them.
        categories: name, problems and both accuracies of each category, with their difference.
        summary: the file that it was read from, None for the comparison at the end of the run.
        in_training: how many of the prompts were trained on, if that is known.
        cut: how many answers were cut off, where that is known.
        part: what the answers earned, where some earned a part of the mark.
        common: a sentence on an answer that is right for many of the problems, if there is one.
    """

    name: str
    problems: int
    base: Interval
    adapter: Interval
    difference: Interval | None
    at_k: list[Row]
    categories: list[tuple[str, int, Interval, Interval, Interval | None]]
    summary: Row | None
    in_training: int | None = None
    cut: CutAnswers | None = None
    part: PartMarks | None = None
    common: str = ""

    @property
    def overlap(self) -> str | None:
        """A sentence on prompts that were trained on, if any were."""
        what = self.name if self.name == HELD_OUT else f"prompts of {self.name}"
        return overlap_text(self.in_training, self.problems, what)

    @property
    def doubt(self) -> str:
        """Why the difference may be one of length alone; nothing where it is not in doubt."""
        if self.cut is None or self.difference is None:
            return ""
        return self.cut.doubt(self.difference.low, self.difference.high)


def results_of(run: RunRecord) -> list[Result]:
    """Return the evaluations of a run, that of its held-out prompts first.

    Where `grpo-hf eval` has judged the answers of the comparison at the end again, and all of them
    alike, it stands in its place: it has samples and categories beside them.
    """
    results = []
    final = _final(run)
    repeated = [summary for summary in run.sets if _repeats_comparison(run, summary)]
    if final is not None and not repeated:
        results.append(final)
    others = [summary for summary in run.sets if summary not in repeated]
    for summary in [*repeated, *others]:
        base = Interval.of(summary["base"].get("accuracy"))
        adapter = Interval.of((summary.get("adapter") or {}).get("accuracy"))
        if base is None or adapter is None:
            continue
        difference = Interval.of((summary.get("difference") or {}).get("accuracy"))
        name = HELD_OUT if summary in repeated else str(summary["set"])
        if name == HELD_OUT_SET and final is not None:
            name += ", by grpo-hf eval"
        problems = int(summary.get("problems") or len(summary["rows"]))
        at_k, categories = _at_k(summary), _categories(summary)
        known = (
            _whole(summary.get("in_training")),
            CutAnswers.of(summary.get("cut")),
            PartMarks.of(summary.get("part_marks")),
            said_of_common_gold(summary["rows"], "greedy", adapter.low),
        )
        results.append(
            Result(name, problems, base, adapter, difference, at_k, categories, summary, *known)
        )
    return results


def _repeats_comparison(run: RunRecord, summary: Row) -> bool:
    """Return whether a set has every answer of the comparison at the end, judged alike."""
    if summary["set"] != HELD_OUT_SET or not run.answers:
        return False
    marks = {}
    for row in summary["rows"]:
        sides = [row.get(side) or {} for side in ("base", "adapter")]
        marks[repr(row.get("prompt"))] = [side.get("greedy_right") for side in sides]
    for row in run.answers:
        known = [row[side].get("right") for side in ("base", "adapter")]
        if marks.get(repr(row.get("prompt"))) != known:
            return False
    return True


def _final(run: RunRecord) -> Result | None:
    base = []
    adapter = []
    in_training = 0
    marked = []
    earned = []
    for row in run.answers:
        pair = (row["base"].get("right"), row["adapter"].get("right"))
        # None says that the reward failed, which is nothing about the answer.
        if None not in pair:
            base.append(bool(pair[0]))
            adapter.append(bool(pair[1]))
            in_training += row.get("in_training") is True
            was_cut = (bool(row[side].get("cut")) for side in ("base", "adapter"))
            marked.append(Marked(base[-1], adapter[-1], *was_cut))
            earned.append((row["base"].get("reward"), row["adapter"].get("reward")))
    if not base:
        return None
    found = compare(base, adapter)
    before = Interval(found.base.value, found.base.low, found.base.high)
    after = Interval(found.adapter.value, found.adapter.low, found.adapter.high)
    difference = Interval(found.difference, found.low, found.high)
    limit = run.answers[0].get("limit")
    # Runs of older versions have not noted it.
    cut = CutAnswers.count(marked, limit) if isinstance(limit, int) else None
    common = said_of_common_gold(run.answers, "answer", after.low)
    known = in_training, cut, PartMarks.count(earned), common
    return Result(HELD_OUT, len(base), before, after, difference, [], [], None, *known)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _at_k(summary: Row) -> list[Row]:
    rows = []
    for model in ("base", "adapter"):
        for measure in ("pass", "maj"):
            values = (summary.get(model) or {}).get(f"{measure}_at")
            for k, row in (values if isinstance(values, dict) else {}).items():
                found = Interval.of(row)
                if found is not None and str(k).isdigit():
                    rows.append(
                        {
                            "series": f"{model} {measure}@k",
                            "k": int(k),
                            "value": found.value,
                            "low": found.low,
                            "high": found.high,
                        }
                    )
    return sorted(rows, key=lambda row: (row["series"], row["k"]))


def _categories(
    summary: Row,
) -> list[tuple[str, int, Interval, Interval, Interval | None]]:
    found = []
    for name, row in (summary.get("by_category") or {}).items():
        intervals = []
        for part in ("base", "adapter", "difference"):
            value = row.get(part) or {}
            # Either the interval itself, or under the name of the measure.
            intervals.append(Interval.of(value) or Interval.of(value.get("accuracy")))
        base, adapter, difference = intervals
        if base is not None and adapter is not None:
            found.append((str(name), int(row.get("problems") or 0), base, adapter, difference))
    return found


def figures(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the figures of a run: name, value, and a note."""
    # The last step is not logged where logging_steps does not divide their number.
    steps = run.summary.get("step", run.steps[-1]["step"])
    rows = [("steps", f"{steps:,}{_of_all(run)}", _of_data(run))]
    for metric, name in (
        ("reward", "reward"),
        ("completions/mean_length", "tokens of a completion"),
        ("entropy", "entropy"),
    ):
        values = [value for _, value in points_of(run.steps, metric)]
        if values:
            # A single step is the mean of a few prompts.
            few = max(1, len(values) // _EDGE)
            first, last = fmean(values[:few]), fmean(values[-few:])
            over = f", means of {few} steps" if few > 1 else ""
            rows.append((name, number_text(last), f"from {number_text(first)}{over}"))
    kl = sorted(_without_rounding(value) for _, value in points_of(run.steps, "kl"))
    if kl:
        middle = number_text(kl[len(kl) // 2])
        rows.append(("KL of a step, median", middle, f"largest {number_text(kl[-1])}"))
    seconds = run.summary.get("train_runtime")
    if isinstance(seconds, int | float):
        rows.append(("wall time of training", *_wall_time(run, seconds)))
    return rows


def _without_rounding(kl: float) -> float:
    """Return a KL, and 0 for what is left of two equal policies by the order of additions."""
    return 0.0 if abs(kl) < _ROUNDING else kl


def standing_of(run: RunRecord) -> str:
    """Return where a run stands that has not ended, as "step 4 of 40"; nothing of one that has."""
    return "" if run.summary else f"step {run.steps[-1]['step']:,}{_of_all(run)}"


def _of_all(run: RunRecord) -> str:
    """Return how many steps there were to be, of a run that has not ended."""
    settings = run.starts[-1].get("settings") if run.starts else None
    steps = settings.get("max_steps") if isinstance(settings, dict) else None
    return f" of {steps:,}" if not run.summary and isinstance(steps, int) and steps > 0 else ""


def _of_data(run: RunRecord) -> str:
    epoch = run.summary.get("epoch", run.steps[-1].get("epoch"))
    return f"{number_text(epoch, 2)} epochs" if isinstance(epoch, int | float) else ""


def _wall_time(run: RunRecord, last: float) -> tuple[str, str]:
    """Return how long a training took, and a note with its tokens per second.

    Args:
        last: seconds of the last start, which the summary has.
    """
    began = int(run.starts[-1].get("step") or 0) if run.starts else 0
    earlier = _seconds_until(run, began)
    counted = points_of(run.steps, "num_tokens")
    tokens = counted[-1][1] if counted else 0.0
    said = []
    if earlier is None:
        tokens -= max((count for step, count in counted if step <= began), default=0.0)
        said.append(f"since step {began:,}")
    elif began:
        said.append("with the steps of earlier starts")
    seconds = last + (earlier or 0.0)
    if tokens and seconds > 0:
        said.insert(0, f"{tokens / seconds:,.0f} tokens/s")
    return duration(seconds), ", ".join(said)


def _seconds_until(run: RunRecord, end: int) -> float | None:
    """Return the seconds of the steps up to one; None where they were not all timed."""
    seconds, step = 0.0, 0
    for row in run.steps:
        if step >= end:
            break
        if not isinstance(row.get("step_time"), int | float):
            return None
        # TRL logs the mean of the steps since the line before; a checkpoint may lie among them.
        last = min(int(row["step"]), end)
        seconds += row["step_time"] * (last - step)
        step = last
    return seconds if step == end else None


def duration(seconds: float) -> str:
    """Return a time as a reader takes it in.

    >>> duration(42.3), duration(150), duration(7260)
    ('42 s', '2 min 30 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


@dataclass(frozen=True)
class Settings:
    """The settings of runs beside each other.

    Args:
        differing: name, and the value of each run, where they differ.
        same: name and value of the others.
    """

    differing: list[tuple[str, list[str]]]
    same: list[tuple[str, str]]


def settings_of(runs: Sequence[RunRecord]) -> Settings:
    """Compare the settings of runs; a single run differs in nothing."""
    told = [run.settings() for run in runs]
    names: set[str] = set()
    for settings in told:
        names |= set(map(str, settings))
    differing = []
    same = []
    for name in sorted(names - set(_OF_ONE_RUN)):
        values = [_shown(settings[name]) if name in settings else "–" for settings in told]
        if len(set(values)) > 1:
            differing.append((name, values))
        else:
            same.append((name, values[0]))
    return Settings(differing, same)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(inner)}" for name, inner in value.items())
    return str(value)


def starts_of(run: RunRecord) -> list[tuple[str, str]]:
    """Return what a run was started with, as names and texts; of a resumed run the first start.

    Of the later ones the step, the time and the command are there.
    """
    if not run.starts:
        return []
    start = run.starts[0]
    machine = start.get("machine") or {}
    memory = machine.get("memory")
    cores = machine.get("cores")
    parts = [machine.get("processor"), f"{cores} cores" if cores else None]
    if isinstance(memory, int):
        parts.append(f"{memory / 2**30:.0f} GiB")
    parts += machine.get("devices") or []
    versions = start.get("versions") or {}
    rows = [
        ("started", str(start.get("time", ""))),
        ("command", str(start.get("command", ""))),
        ("folder", str(start.get("folder", ""))),
        ("commit", _commit(start.get("commit"))),
        ("grpo-hf's source", _commit(start.get("source"))),
        ("seed", str(start.get("seed", ""))),
        ("processes", str(start.get("processes", ""))),
        ("machine", _joined([*parts, machine.get("system")])),
        ("versions", _joined([f"{name} {version}" for name, version in versions.items()])),
    ]
    for later in run.starts[1:]:
        when = f"at step {later.get('step', '?')}, {later.get('time', '?')}"
        rows.append(("started again", f"{when}: {later.get('command', '')}"))
    return [(name, text) for name, text in rows if text]


def _joined(parts: Sequence[Any]) -> str:
    return ", ".join(str(part) for part in parts if part)


def _commit(found: Any) -> str:
    if not isinstance(found, dict):
        return ""
    return f"{found.get('commit')}{', with changes' if found.get('changed') else ''}"
