"""The end of a run: base against adapter in a table, and where the files lie."""

import json
import shlex
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..data.overlap_text import overlap_text
from ..evaluation.statistics import LEAST_PAIRS, Comparison
from ..evaluation.telling import cannot_tell
from ..run_files import (
    EVALUATION_FILE,
    FAILURES_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    say,
)
from .failed_rewards import LEFT_OUT, why_completions_were_left_out
from .metrics_file import read_metrics
from .nothing_learned import NOTHING_LEARNED_CURE, why_nothing_was_learned
from .token_credit import CREDIT_FILE

# What to look at where a run has learned nothing, each with the file that it needs.
_LOOK = {
    "rewards check {run}/recipe.yaml": (RECIPE_FILE, "what right answers earn, and others"),
    "credit {run}": (CREDIT_FILE, "completions of the last step"),
    "report {run}": (REPORT_FILE, "one page: samples of all steps"),
}
# The commands that follow a run, each with what it is for.
_NEXT = {
    "chat {run}": "base and adapter, side by side",
    "eval {run} --samples 8": "how often it is right: pass@k, maj@k",
    "report {run}": "one page: curves, samples, doubts",
    "export {run}": "merged weights or GGUF",
    "push {run} REPO": "to the Hub, private unless --public",
}


def show(
    comparison: Comparison | None,
    folder: str | Path,
    reward_name: str,
    console: Console | None = None,
    *,
    in_training: int | None = None,
) -> None:
    """Print the comparison, if there is one, and where the files of the run lie.

    Args:
        folder: the output folder of the run.
        reward_name: the reward whose full mark counts as right.
        in_training: how many held-out prompts were trained on, if that is known.
    """
    if console is None:
        # Where the output is gone, rich would end the process, which still has a run to push.
        shown = StringIO()
        # Without highlighting, which colours every number of a sentence.
        own = Console(file=shown, force_terminal=sys.stdout.isatty(), highlight=False)
        show(comparison, folder, reward_name, own, in_training=in_training)
        say(shown.getvalue().rstrip("\n"))
        return
    steps = read_metrics(Path(folder))
    nothing = why_nothing_was_learned(steps)
    if comparison is not None:
        console.print(_comparison_table(comparison, reward_name))
        _show_cut(comparison, folder, console)
        if comparison.part is not None:
            said = comparison.part.said(comparison.low)
            console.print(said, soft_wrap=True, markup=False)
        total = comparison.base.total
        overlap = overlap_text(in_training, total)
        if overlap is not None:
            console.print(f"note: {overlap}", markup=False)
        alike = cannot_tell(comparison.base.value, comparison.adapter.value, reward_name)
        if total < LEAST_PAIRS:
            console.print(
                f"note: {total} held-out prompt{'s are' if total > 1 else ' is'} too few to say "
                "anything: with fewer than "
                f"{LEAST_PAIRS} even a change of all may be chance.",
                markup=False,
            )
        # Of a run without any reward, the comparison is not what to mend.
        elif alike is not None and not nothing:
            console.print(f"note: {alike} Name another reward: --eval_reward NAME.", markup=False)
    # Paths may hold brackets, which rich reads as markup, and must not be broken into lines.
    console.print(f"model:   {folder}", soft_wrap=True, markup=False)
    console.print(f"log:     {folder}/{METRICS_FILE}", soft_wrap=True, markup=False)
    if comparison is not None:
        console.print(f"answers: {folder}/{EVALUATION_FILE}", soft_wrap=True, markup=False)
    if (Path(folder) / REPORT_FILE).is_file():
        console.print(f"report:  {folder}/{REPORT_FILE}", soft_wrap=True, markup=False)
    for failed in why_completions_were_left_out(steps):
        where = f"{Path(folder) / FAILURES_FILE} has the first of them."
        console.print(f"note: {failed} {LEFT_OUT} {where}", soft_wrap=True, markup=False)
    if nothing:
        console.print(f"note: {nothing} {NOTHING_LEARNED_CURE}", soft_wrap=True, markup=False)
    for line in what_to_look_at(folder) if nothing else next_steps(folder):
        console.print(line, soft_wrap=True, markup=False)


def _show_cut(comparison: Comparison, folder: str | Path, console: Console) -> None:
    """Print how many answers were cut off, and whether that may be all of the difference."""
    if comparison.cut is None or not comparison.cut.line:
        return
    console.print(comparison.cut.line, markup=False)
    if comparison.doubt:
        cure = comparison.cut.cure(shlex.quote(str(folder)))
        console.print(f"note: {comparison.doubt}. {cure}", soft_wrap=True, markup=False)


def what_to_look_at(folder: str | Path) -> list[str]:
    """Return lines that say what to look at where a run has learned nothing."""
    place = shlex.quote(str(folder))
    lines = ["next:"]
    for command, (needed, purpose) in _LOOK.items():
        if (Path(folder) / needed).is_file():
            lines.append(f"  grpo-hf {command.format(run=place):{len(place) + 26}}  {purpose}")
    return lines


def next_steps(folder: str | Path) -> list[str]:
    """Return lines that say what can be done with a run, each to be copied as it is."""
    place = shlex.quote(str(folder))
    lines = ["next:"]
    commands = {command.format(run=place): purpose for command, purpose in _NEXT.items()}
    width = max(map(len, commands))
    for command, purpose in commands.items():
        lines.append(f"  grpo-hf {command:{width}}  {purpose}")
    is_adapter = (Path(folder) / "adapter_config.json").is_file()
    loader = "AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM"
    lines.append(f"  in Python: {loader}.from_pretrained({json.dumps(str(folder))})")
    return lines


def _comparison_table(comparison: Comparison, reward_name: str) -> Table:
    table = Table(
        title=f"accuracy on {comparison.base.total} held-out prompts, greedy; right: full mark of "
        f"{escape(reward_name)}"
    )
    table.add_column("model", justify="left")
    for column in ("right", "accuracy", "95% interval"):
        table.add_column(column, justify="right")
    shares = {"base (adapter disabled)": comparison.base, "adapter": comparison.adapter}
    for name, share in shares.items():
        interval = f"{share.low:.3f} to {share.high:.3f}"
        table.add_row(name, f"{share.right}/{share.total}", f"{share.value:.3f}", interval)
    interval = f"{comparison.low:+.3f} to {comparison.high:+.3f}"
    difference = f"{comparison.difference:+.3f}"
    table.add_row("difference (paired)", "", difference, interval, style="bold")
    return table
