"""The commands that show what a run has left: `grpo-hf report`, `plot` and `credit`."""

import argparse
from pathlib import Path
from typing import Any

from .run_folders import check_run


def add_report_commands(commands: Any) -> None:
    """Add the commands to those of `grpo-hf`."""
    report = commands.add_parser(
        "report", help="write the page of a run, or of several", description=_report.__doc__
    )
    report.add_argument("run", type=Path, nargs="+", help="output folder of a run")
    report.add_argument("--to", type=Path, metavar="FILE", help="the page (RUN/report.html)")
    report.add_argument("--no_pictures", action="store_true", help="write no PNG of each chart")
    report.set_defaults(command=_report, begins_with="reading the run, drawing its charts ...")

    plot = commands.add_parser("plot", help="draw a run's rewards", description=_plot.__doc__)
    plot.add_argument("run", type=Path, help="output folder of a run")
    plot.add_argument("picture", type=Path, help="PNG, SVG or PDF file to write")
    plot.set_defaults(command=_plot)

    credit = commands.add_parser(
        "credit", help="show what each token was trained on", description=_credit.__doc__
    )
    credit.add_argument("run", type=Path, help="output folder of a run")
    credit.add_argument("--step", type=int, help="a logged step (default: the last)")
    credit.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    credit.set_defaults(command=_credit)


# The docstrings of the commands are what `--help` shows as their descriptions.


def _report(options: argparse.Namespace, rest: list[str]) -> None:
    """Write one HTML file that says whether a run got better, why, and how one knows: rewards, KL,
    evaluations, samples, settings. Several runs are shown beside each other."""
    # Before the imports, which take longer.
    for run in options.run:
        check_run(run)
    from .runs.finished import write_page

    print(write_page(options.run, options.to, pictures=not options.no_pictures))


def _plot(options: argparse.Namespace, rest: list[str]) -> None:
    """Draw the mean of every reward and the KL over the steps of a run."""
    check_run(options.run)
    from .run_report.page import write_plot

    write_plot(options.run, options.picture)
    print(options.picture)


def _credit(options: argparse.Namespace, rest: list[str]) -> None:
    """Show completions of a step of a run, each token coloured by the advantage that it was trained
    on. A run keeps one group of a logged step, and at most 8 completions of it."""
    from .runs.finished import show_credit

    show_credit(options.run, options.step, options.html)
