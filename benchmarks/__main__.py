"""Run all benchmarks one after the other, and print one table at the end.

    python -m benchmarks [--repeats 5] [--threads 1]

Each benchmark runs in its own process, so that none starts with the memory of another. The exit
code is 1 if a benchmark failed, or if its sides did not compute the same numbers. A missed bar is
shown in the table and does not change the exit code.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

from .common import ROOT, Row, options, show

BENCHMARKS = ("update", "rollout", "hybrids", "step", "memory", "plan", "scoring")


def run_benchmark(name: str, arguments: argparse.Namespace) -> bool:
    """Run one benchmark in its own process; return whether it succeeded."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    for flag in ("model", "threads", "results", "repeats"):
        command += [f"--{flag}", str(getattr(arguments, flag))]
    # `python -m benchmarks.NAME` works in the root of the repository only.
    return subprocess.run(command, cwd=ROOT).returncode == 0


def read_rows(name: str, arguments: argparse.Namespace) -> list[Row]:
    """Return the rows that a benchmark wrote, with its name in front of theirs."""
    record = json.loads((arguments.results / f"{name}.json").read_text(encoding="utf-8"))
    rows = []
    for row in record["rows"]:
        # Different benchmarks have rows of the same name, such as p512.
        rows.append({**row, "name": f"{name} {row['name']}"})
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Run every benchmark with the flags of the command line.

    Raises:
        SystemExit: with code 1, if a benchmark failed.
    """
    arguments = options(__doc__).parse_args(given)
    rows: list[Row] = []
    failed = []
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        if run_benchmark(name, arguments):
            rows += read_rows(name, arguments)
        else:
            failed.append(name)
    if rows:
        show(rows, "all benchmarks")
    if failed:
        raise SystemExit(f"error: {', '.join(failed)} failed; see above.")


if __name__ == "__main__":
    main()
