"""The command `grpo-hf eval`."""

import argparse
from pathlib import Path
from typing import Any

from .run_folders import check_weights


def add_evaluate_command(commands: Any) -> None:
    """Add the command to those of `grpo-hf`."""
    command = commands.add_parser(
        "eval", help="base against adapter on sets of problems", description=_evaluate.__doc__
    )
    command.add_argument("run", type=Path, help="output folder of a run, or a checkpoint in it")
    command.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="SET",
        help="gsm8k, math500, svamp, mgsm_en, mgsm_de, mgsm_zh, mbpp, countdown, held_out; "
        "PATH or NAME=PATH for a local copy or data of your own (default: held_out, and the "
        "recipe's eval_data)",
    )
    command.add_argument(
        "--samples", type=int, default=0, metavar="N", help="sampled answers per problem (0)"
    )
    command.add_argument(
        "--limit", type=int, metavar="N", help="the first N problems of a set (all)"
    )
    command.add_argument(
        "--batch_size", type=int, metavar="N", help="answers at a time (the run's)"
    )
    command.add_argument("--reward", metavar="SPEC", help="what is right (the set's own reward)")
    command.add_argument("--category", metavar="COLUMN", help="show results apart by a column")
    command.add_argument("--base", metavar="MODEL", help="the base, if it has moved")
    command.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with the base"
    )
    command.add_argument("--json", action="store_true", help="print the summaries as JSON")
    command.set_defaults(command=_evaluate, takes_settings=True)


def _evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    """Let the base and the adapter of a run answer the same problems, and show accuracies, pass@k,
    maj@k and their paired differences. A command that was stopped goes on where it was. Settings of
    the recipe are flags too: --temperature 0.6. On several devices:
    accelerate launch -m grpo_hf.cli eval RUN."""
    # Before the imports, which take longer.
    check_weights(options.run)
    from .runs.evaluating import Question, evaluate_run

    question = Question(
        data=options.data,
        samples=options.samples,
        limit=options.limit,
        batch_size=options.batch_size,
        reward=options.reward,
        category=options.category,
        base=options.base,
        trust_remote_code=options.trust_remote_code,
        as_json=options.json,
    )
    evaluate_run(options.run, question, rest)
