"""What is done with the output folder of a run: its report, the credit of tokens, a later push.

Each function imports what it needs when it runs, so that a mistake in a name shows soon.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, ModelError, OutputExistsError
from ..run_files import read_lines, say, write_or_say
from ..run_folders import check_run, no_weights_in

logger = logging.getLogger(__name__)


def report(*runs: Path, page: Path | None = None) -> Path | None:
    """Write the report of runs that have ended; say what is wrong with it, as it ends no run.

    Args:
        runs: output folders; several are shown beside each other.
        page: the file; by default in the folder of the first.

    Returns:
        Where the page lies, or None.
    """
    try:
        return write_page(runs, page)
    # It says what to do, and another try would find the same.
    except DataError as error:
        logger.warning(f"No report was written: {error}")
        return None
    # Whatever is wrong with a page, the weights are on disk, and a push may follow.
    except Exception as error:
        logger.warning(
            f"No report was written ({type(error).__name__}: {error}). For another try: "
            f"grpo-hf report {' '.join(map(str, runs))}"
        )
        return None


def say_report(*runs: Path, page: Path) -> None:
    """Write the report of the runs of a program, if it has any, and say where it lies."""
    written = report(*runs, page=page) if runs else None
    if written is not None:
        say(f"report: {written}")


def write_page(runs: Sequence[Path], page: Path | None = None, *, pictures: bool = True) -> Path:
    """Write the report of runs and, of one, the card anew; arguments and errors of `write_report`.

    Returns:
        Where the page lies.
    """
    from ..reporting.model_card import refresh_card
    from ..run_report.page import write_report

    page = write_report(runs, page, pictures=pictures)
    if len(runs) == 1:
        # It shows the curves that are beside the page.
        refresh_card(runs[0])
    return page


def show_and_keep(shown: Sequence[Any], page: Path, *, width: int | None = None) -> None:
    """Print results, and keep them as a page: of work that is no run, which `report` could show.

    Args:
        shown: tables and lines, as rich prints them.
        width: characters of a line.
    """
    from rich.console import Console

    console = Console(highlight=False, width=width, record=True)
    for one in shown:
        console.print(one)
    write_or_say(page, console.export_html())
    say(f"report: {page}")


def show_credit(run: Path, step: int | None, page: Path | None) -> None:
    """Print completions of a step, by default the last, coloured by advantage; or write a page.

    Raises:
        DataError: the folder is not that of a run, or does not have the step.
        OutputExistsError: the page exists, or cannot be written.
    """
    from rich.console import Console

    from ..reporting.credit_display import to_html, to_text
    from ..reporting.token_credit import Group

    check_run(run)
    group = Group.of(_credit_row(run, step))
    if page is None:
        # The terminal's own width: a completion is text that may wrap, not a table.
        Console(highlight=False).print(to_text(group))
        return
    try:
        # Mode "x" fails where the file exists, so nobody's page is lost.
        with page.open("x", encoding="utf-8") as file:
            file.write(to_html([group]))
    except FileExistsError:
        raise OutputExistsError(
            f"{page} exists, and is not overwritten. Give --html another name."
        ) from None
    except OSError as error:
        raise OutputExistsError(
            f"{page} cannot be written ({error.strerror}). Give another --html."
        ) from error
    print(page)


def push(run: Path, repo: str, *, private: bool, samples: bool, dry_run: bool = False) -> None:
    """Push the folder of a run to the Hub, and print which files and to which address.

    Args:
        private: whether a new repository is private.
        samples: whether prompts and completions are pushed.
        dry_run: only print the files.

    Raises:
        ConfigError: the Hub refuses, or there is no login.
        DataError: the folder is not that of a run.
        HubUnreachable: the Hub does not answer.
        ModelError: the run has saved no weights.
    """
    check_run(run)
    from ..reporting.pushing import holds_weights, list_files, push_folder

    checkpoint = None if holds_weights(run) else _checkpoint_to_push(run)
    if dry_run:
        list_files(run, repo, samples=samples, checkpoint=checkpoint)
        return
    push_folder(run, repo, private=private, samples=samples, checkpoint=checkpoint)


def _checkpoint_to_push(run: Path) -> Path:
    """Return the newest whole checkpoint of a run that has not ended, and say which it is.

    Raises:
        ModelError: there is none, or none that others could load.
    """
    from ..durability import whole_checkpoints
    from ..reporting.pushing import holds_weights

    newest = whole_checkpoints.find(run).newest
    if newest is None or not holds_weights(newest):
        raise ModelError(f"{no_weights_in(run)} Nothing was pushed.")
    say(f"note: the run has not ended; this is {newest.name}.")
    return newest


def push_run(folder: Path, repo: str, args: Any) -> None:
    """Push a run as its settings ask for it.

    Args:
        args: settings of the run.

    Raises:
        ConfigError, HubUnreachable: it cannot be pushed; the message says how to do it later.
    """
    from ..config import option
    from ..reporting.pushing import push_folder

    push_folder(
        folder,
        repo,
        private=args.hub_private_repo,
        samples=option(args, "push_samples"),
        token=args.hub_token,
        revision=args.hub_revision,
    )


def _credit_row(run: Path, step: int | None) -> dict[str, Any]:
    """Return the line of a run's credit file for a step, by default for the last step."""
    from ..reporting.token_credit import CREDIT_FILE

    file = run / CREDIT_FILE
    row_by_step = {}
    if file.is_file():
        # A run that was resumed may have logged a step twice; the later row counts.
        for row in read_lines(file):
            row_by_step[row["step"]] = row
    if not row_by_step:
        raise DataError(
            f"{run} has no step in {CREDIT_FILE}: the run was made with log_credit false, or "
            "without logging by steps. Train with --log_credit true --logging_strategy steps."
        )
    if step is None:
        step = max(row_by_step)
    if step not in row_by_step:
        known = ", ".join(map(str, sorted(row_by_step)))
        raise DataError(f"{file} has no step {step}. Give --step one of {known}.")
    return row_by_step[step]
