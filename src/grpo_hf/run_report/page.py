"""The page: everything that is known of one or several runs, in one HTML file beside pictures."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import ConfigError, DataError, OutputExistsError
from ..reporting.failed_rewards import LEFT_OUT, why_completions_were_left_out
from ..reporting.nothing_learned import NOTHING_LEARNED_CURE, why_nothing_was_learned
from ..reporting.spikes import spikes
from ..reporting.trends import FEWEST_VALUES
from ..run_files import GAMING_FILE, METRICS_FILE, REPORT_FILE, reason_of, write_whole
from . import facts, samples
from .charts import Chart, below_each_other, chart_of
from .comparable import why_not_comparable
from .curves import all_numbers, panels_of, slug
from .points import number_text, points_of
from .record import Row, RunRecord, read_runs
from .result_charts import accuracy_chart, at_k_chart
from .verdict import verdict as verdict_of

logger = logging.getLogger(__name__)

# Of several runs, beside the page of the first.
COMPARISON_FILE = "comparison.html"
# By it a page that is written anew is told from a file of somebody's own.
_MARK = '<meta name="generator" content="grpo-hf">'
_MOST_SPIKES = 8


@dataclass(frozen=True)
class ResultView:
    """An evaluation with its charts and its changed answers."""

    result: facts.Result
    charts: list[Chart]
    changes: list[samples.Change]


@dataclass(frozen=True)
class Finding:
    """A sentence about a run, with the samples that show it, and what to try."""

    name: str
    text: str
    anchor: str
    shown: list[samples.Shown]
    advice: str = ""


@dataclass(frozen=True)
class RunView:
    """A run as the template shows it.

    Args:
        prefix: before all of its anchors.
        nothing_learned: why nothing was learned, if that is so.
        over_time: held-out prompts, answered at each evaluation.
        again: prompts of the training that came back.
        rollouts: how many were logged with a reward.
        left_out_steps: whether steps were made and not logged.
    """

    record: RunRecord
    prefix: str
    verdict: str
    nothing_learned: str
    figures: list[tuple[str, str, str]]
    results: list[ResultView]
    findings: list[Finding] | None
    rollouts: int
    left_out_steps: bool
    spikes: list[Finding]
    moments: list[samples.Shown]
    over_time: list[samples.Shown]
    again: list[list[samples.Shown]]
    best: list[samples.Shown]
    worst: list[samples.Shown]
    starts: list[tuple[str, str]]
    numbers: list[dict[str, Any]]


def write_report(
    folders: Sequence[Path], page: Path | None = None, *, pictures: bool = True
) -> Path:
    """Write the page of one run, or of several beside each other, and a picture of each chart.

    Args:
        folders: output folders of runs.
        page: the file; by default in the first run's folder.
        pictures: whether the pictures are written, in a folder beside the page.

    Returns:
        Where the page lies.

    Raises:
        DataError: a folder is not that of a run, or has no logged step.
        OutputExistsError: the page is somebody's own file, or cannot be written.
    """
    # A run beside itself would be two columns of the same numbers.
    folders = list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]
    runs = read_runs(folders)
    several = len(runs) > 1
    if page is None:
        page = folders[0] / (COMPARISON_FILE if several else REPORT_FILE)
    _check_own(page)
    views = []
    for place, run in enumerate(runs, 1):
        views.append(_view(run, f"r{place}-", is_alone=not several))
    charts = [chart_of(panel) for panel in panels_of(runs)]
    accuracies = _accuracies(views)
    try:
        write_whole(page, render(views, charts, accuracies))
        if pictures:
            own = [chart for view in views for shown in view.results for chart in shown.charts]
            _write_pictures(_beside(page), [*accuracies, *charts, *own])
    except OSError as error:
        raise OutputExistsError(
            f"{error.filename or page} cannot be written ({reason_of(error)}). Give another --to."
        ) from error
    return page


def write_plot(run: Path, picture: Path) -> None:
    """Draw the rewards of a run and its KL below each other, as a PNG, SVG or PDF file.

    Raises:
        ConfigError: the picture has an ending that cannot be drawn.
        DataError: the folder is not that of a run, or has no logged reward and no logged KL.
        OutputExistsError: the picture cannot be written.
    """
    kind = picture.suffix.removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ConfigError(f"{picture}: expected a name that ends in .png, .svg or .pdf.")
    charts = []
    for panel in panels_of(read_runs([run])):
        if panel.name in ("rewards", "kl"):
            charts.append(chart_of(panel))
    if not charts:
        raise DataError(f"{run}: {METRICS_FILE} has neither a reward nor a KL to draw.")
    try:
        picture.write_bytes(below_each_other(charts, run.resolve().name).file(kind))
    except OSError as error:
        raise OutputExistsError(
            f"{picture} cannot be written ({reason_of(error)}). Give another name."
        ) from error


def render(views: Sequence[RunView], charts: Sequence[Chart], accuracies: Sequence[Chart]) -> str:
    """Return the page as HTML; every text in it is escaped, whoever wrote it."""
    environment = Environment(
        loader=PackageLoader("grpo_hf.run_report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["number"] = partial(number_text, digits=4)
    environment.filters["drawn"] = lambda chart: Markup(chart.svg())
    environment.globals["percent"] = _percent
    names = [name for view in views for name, _, _ in view.figures]
    return environment.get_template("page.html.jinja").render(
        views=views,
        fewest_rollouts=FEWEST_VALUES,
        figure_names=list(dict.fromkeys(names)),
        charts=charts,
        accuracies=accuracies,
        doubts=why_not_comparable([view.record for view in views]),
        settings=facts.settings_of([view.record for view in views]),
        mark=Markup(_MARK),
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
        version=metadata.version("grpo-hf"),
    )


def _view(run: RunRecord, prefix: str, *, is_alone: bool) -> RunView:
    results = facts.results_of(run)
    best, worst = samples.extremes(run, prefix)
    findings = _findings(run.folder, prefix)
    nothing = why_nothing_was_learned(run.steps)
    failed = [f"{each} {LEFT_OUT}" for each in why_completions_were_left_out(run.steps)]
    signs = {found.name: found.text for found in findings or []}
    verdict = verdict_of(results, signs, standing=facts.standing_of(run))
    return RunView(
        record=run,
        prefix=prefix,
        verdict=" ".join([f"{nothing} {NOTHING_LEARNED_CURE}" if nothing else verdict, *failed]),
        nothing_learned=nothing,
        figures=facts.figures(run),
        results=[_result_view(run, result, prefix, is_alone=is_alone) for result in results],
        findings=findings,
        rollouts=len(points_of(run.steps, "reward")),
        left_out_steps=_left_out(run.steps),
        spikes=_spikes(run.folder, prefix),
        moments=samples.moments(run, f"{prefix}moment-"),
        over_time=samples.over_time(run, f"{prefix}over-time"),
        again=samples.same_prompts(run, prefix),
        best=best,
        worst=worst,
        starts=facts.starts_of(run),
        numbers=all_numbers(run),
    )


def _left_out(steps: Sequence[Row]) -> bool:
    """Return whether steps between those that were logged were not."""
    numbers = [row["step"] for row in steps]
    # A log may begin with the step that a run was resumed at.
    if len(numbers) == 1:
        return bool(numbers[0] > 1)
    return any(after - before > 1 for before, after in pairwise(numbers))


def _result_view(
    run: RunRecord, result: facts.Result, prefix: str, *, is_alone: bool
) -> ResultView:
    charts = []
    if result.at_k:
        chart = at_k_chart(result.name, result.at_k)
        if not is_alone:
            # Several runs may have answered the same set.
            title = f"{chart.title} ({run.name})"
            chart = replace(chart, name=f"{prefix}{chart.name}", title=title)
        charts.append(chart)
    if result.summary is None:
        return ResultView(result, charts, samples.final_changes(run, prefix))
    changes = samples.changes_of_set(result.summary, f"{prefix}{slug(result.name)}")
    return ResultView(result, charts, changes)


def _findings(run: Path, prefix: str) -> list[Finding] | None:
    """Return what the watch found; None where it could not look."""
    found = []
    rows = _found_rows(run)
    for number, row in enumerate(rows or [], 1):
        anchor = f"{prefix}finding-{number}"
        shown = samples.found_samples(row.get("samples") or [], anchor)
        name, text, advice = (str(row.get(key) or "") for key in ("name", "text", "advice"))
        found.append(Finding(name, text, anchor, shown, advice))
    return None if rows is None else found


def _found_rows(run: Path) -> list[Row] | None:
    """Return the findings on disk, or those of a look at a run that has none there."""
    file = run / GAMING_FILE
    try:
        # A run that goes on has logged more since its watch looked at the end of the last start.
        if file.stat().st_mtime >= (run / METRICS_FILE).stat().st_mtime:
            rows = json.loads(file.read_text(encoding="utf-8"))
            return [row for row in rows if isinstance(row, dict)]
    except (OSError, ValueError, TypeError):
        pass
    # It takes seconds to import, and a run from a recipe has looked itself.
    from ..reporting.gaming import findings

    try:
        return [asdict(finding) for finding in findings(run)]
    # Whatever is odd about the files of a run, the rest of the page is worth reading.
    except Exception as error:
        logger.warning(f"{run}: no look at how it earned its reward: {error}")
        return None


def _spikes(run: Path, prefix: str) -> list[Finding]:
    """Return the spikes of the KL, the highest first, each with the completion of its token."""
    found = []
    highest = sorted(spikes(run), key=lambda spike: -spike.max)
    for number, spike in enumerate(highest[:_MOST_SPIKES], 1):
        anchor = f"{prefix}spike-{number}"
        rows = []
        for token in spike.tokens[:1]:
            # Only of a spike the file keeps whole texts.
            if token.completion:
                rows.append(
                    {"step": token.step, "prompt": token.prompt, "completion": token.completion}
                )
        shown = samples.found_samples(rows, anchor)
        found.append(Finding(f"step {spike.step}", spike.text, anchor, shown))
    return found


def _accuracies(views: Sequence[RunView]) -> list[Chart]:
    """Return the chart of all accuracies, if anything was evaluated."""
    rows: list[Row] = []
    for view in views:
        for shown in view.results:
            name = shown.result.name
            if len(views) > 1:
                name = f"{view.record.name}: {name}"
            for model in ("base", "adapter"):
                found: facts.Interval = getattr(shown.result, model)
                interval = {"value": found.value, "low": found.low, "high": found.high}
                rows.append({"set": name, "model": model} | interval)
    return [accuracy_chart(rows)] if rows else []


def _check_own(page: Path) -> None:
    """Refuse to write over a file that is no report.

    Raises:
        OutputExistsError: there is such a file.
    """
    if not page.exists():
        return
    try:
        with page.open("rb") as file:
            is_own = _MARK.encode() in file.read(1000)
    except OSError:
        is_own = False
    if not is_own:
        raise OutputExistsError(f"{page} is no report, and is not overwritten. Give another --to.")


def _beside(page: Path) -> Path:
    """Return the folder of a page's pictures.

    >>> str(_beside(Path("a/report.html"))), str(_beside(Path("v1.2")))
    ('a/report', 'v1.2-pictures')
    """
    if page.suffix.lower() in (".html", ".htm"):
        return page.with_suffix("")
    return page.with_name(f"{page.name}-pictures")


def _write_pictures(folder: Path, charts: Sequence[Chart]) -> None:
    """Write the charts as PNG files.

    Raises:
        OSError: one of them cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        (folder / f"{chart.name}.png").write_bytes(chart.file("png"))


def _percent(interval: facts.Interval, *, signed: bool = False) -> str:
    """Return a share and its interval in percent, or a difference of shares in points.

    >>> _percent(facts.Interval(0.25, 0.2, 0.31))
    '25.0% (20.0 to 31.0)'
    >>> _percent(facts.Interval(0.25, 0.2, 0.31), signed=True)
    '+25.0 points (+20.0 to +31.0)'
    """
    sign = "+" if signed else ""
    value, low, high = (100 * part for part in (interval.value, interval.low, interval.high))
    unit = " points" if signed else "%"
    return f"{value:{sign}.1f}{unit} ({low:{sign}.1f} to {high:{sign}.1f})"
