"""All benchmarks one after the other, and one table at the end: `python -m benchmarks [--repeats 5] [--threads 1]`.

Each runs in a process of its own, so that none starts with the memory of another. Exit code 1: the sides of one did not
compute the same, or it failed; a bar that is missed is shown and changes no exit code.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

from .common import ROOT, Row, options, show

BENCHMARKS = ("update", "rollout", "step", "memory", "scoring")


def main(given: Sequence[str] | None = None) -> None:
    """Run everything with the flags that were given."""
    arguments = options(__doc__).parse_args(given)
    shared = [
        "--model",
        arguments.model,
        "--threads",
        str(arguments.threads),
        "--results",
        str(arguments.results),
    ]
    rows: list[Row] = []
    failed = []
    for name in BENCHMARKS:
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{name}",
            *shared,
            "--repeats",
            str(arguments.repeats),
        ]
        print(f"== {name}", flush=True)
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
            continue
        record = json.loads((arguments.results / f"{name}.json").read_text(encoding="utf-8"))
        rows += [{**row, "name": f"{name} {row['name']}"} for row in record["rows"]]
    if rows:
        show(rows, "all benchmarks")
    if failed:
        raise SystemExit(f"error: {', '.join(failed)} failed; see above.")


if __name__ == "__main__":
    main()
