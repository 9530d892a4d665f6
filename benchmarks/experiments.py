"""Run an experiment of docs/results.md again, and write down what came.

    python -m benchmarks.experiments --list
    python -m benchmarks.experiments --run countdown [--data FOLDER]
    python -m benchmarks.experiments --page

`data/experiments.yaml` has the experiments: their commands, the readers of what these write, and
what a person says of the figures. `--run` gives the commands a folder, runs/experiments/NAME, in
which they find recipes/, models/ and the rest by the names that they have here, and runs them one
after the other as they are typed. The same call goes on after an interruption, and begins anew
without the folder. What the readers find goes to results/experiments/NAME.json, from which `--page`
writes docs/results.md.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .common import RESULTS, ROOT, Row, machine, run_alone
from .experiment_readers import READERS
from .experiments_page import experiments, write_page

RECORDS = RESULTS / "experiments"
# What commands name by a path from the root of the project.
LINKED = ("benchmarks", "models", "recipes", "rewards")
# How a process of ours starts a program, so that it is that of this environment.
PROGRAMS = {
    "python": [sys.executable],
    "grpo-hf": [sys.executable, "-m", "grpo_hf.cli"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
    "make": ["make", "-C", str(ROOT)],
}
# The place of the data in a command; `--data` says where it is.
DATA = "FOLDER"


def words_of(command: str, data: Path | None) -> list[str]:
    """Return the words of a command, with its program and its data as they are here."""
    program, *words = shlex.split(command)
    if data is not None:
        words = [
            str(data.resolve()) + word.removeprefix(DATA)
            if word == DATA or word.startswith(f"{DATA}/")
            else word
            for word in words
        ]
    return [*PROGRAMS[program], *words]


def prepare(folder: Path) -> None:
    """Make the folder of an experiment, and note what it is run on, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(ROOT / name)
    started = folder / "started.json"
    # Before the commands: the code may change while they run.
    if not started.is_file():
        started.write_text(json.dumps(machine()), encoding="utf-8")


def run_commands(folder: Path, commands: Sequence[str], arguments: argparse.Namespace) -> None:
    """Run the commands that have not ended in this folder, one after the other.

    Raises:
        SystemExit: a command failed.
    """
    for number, command in enumerate(commands):
        took = folder / f"took-{number}.json"
        if took.is_file():
            print(f"ended before, in {folder}: {command}", flush=True)
            continue
        print(command, flush=True)
        # What a command took that was stopped on its way, and goes on now, nobody knows.
        begun = folder / f"begun-{number}"
        goes_on = begun.exists()
        begun.touch()
        seconds = run_alone(words_of(command, arguments.data), folder, arguments.threads)
        took.write_text(json.dumps({} if goes_on else seconds), encoding="utf-8")


def time_of(took: Sequence[Row]) -> Row:
    """Return the seconds of all commands, or nothing where those of one are not known."""
    if not all(took):
        return {}
    return {"took": {kind: round(sum(each[kind] for each in took), 1) for kind in took[0]}}


def record_of(experiment: Row, folder: Path, threads: int) -> Row:
    """Return what is written down of an experiment: what was run, on what, and what came."""
    started = json.loads((folder / "started.json").read_text(encoding="utf-8"))
    took = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("took-*.json")]
    tables = []
    for asked in experiment["tables"]:
        options = dict(asked)
        read = READERS[options.pop("reader")]
        caption = {"caption": options.pop("caption")} if "caption" in options else {}
        tables.append({**caption, **read(folder, **options)})
    return {
        "commands": experiment["commands"],
        "machine": {**started, "threads": threads},
        "seeds": experiment["seeds"],
        **time_of(took),
        "tables": tables,
    }


def run(name: str, arguments: argparse.Namespace) -> None:
    """Run an experiment, and write its record and its pictures.

    Raises:
        SystemExit: the experiment needs data that is not named, or a command failed.
    """
    experiment = experiments()[name]
    if arguments.data is None and any(DATA in command for command in experiment["commands"]):
        raise SystemExit(
            f"error: {name} reads data. --data names the folder: {experiment['needs']}."
        )
    folder = (arguments.runs / name).absolute()
    prepare(folder)
    run_commands(folder, experiment["commands"], arguments)
    record = record_of(experiment, folder, arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (arguments.results / f"{name}.json").write_text(text, encoding="utf-8")
    for picture in experiment.get("pictures", []):
        arguments.docs.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / picture["made"], arguments.docs / picture["file"])


def show() -> None:
    """Print the experiments, with the minutes that each takes and what it needs."""
    table = Table()
    for heading in ("name", "what it is", "minutes", "needs"):
        table.add_column(heading)
    for name, experiment in experiments().items():
        minutes, needs = str(experiment["minutes"]), experiment.get("needs", "")
        table.add_row(name, experiment["title"], minutes, needs)
    Console().print(table)


def flags() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", choices=list(experiments()), metavar="NAME", help="see --list")
    parser.add_argument("--data", type=Path, help="folder with a folder for each real data set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    parser.add_argument("--results", type=Path, default=RECORDS, help="folder of the records")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="of page and pictures")
    parser.add_argument("--list", action="store_true", help="name the experiments, and end")
    parser.add_argument("--page", action="store_true", help="write docs/results.md, and end")
    return parser


def main(given: Sequence[str] | None = None) -> None:
    """Run an experiment and write its record, list all, or write the page of all records.

    Raises:
        SystemExit: nothing is asked for, data is missing, or a command failed.
    """
    arguments = flags().parse_args(given)
    if arguments.list:
        show()
    elif arguments.page:
        print(f"written to {write_page(arguments.results, arguments.docs)}")
    elif arguments.run:
        run(arguments.run, arguments)
    else:
        raise SystemExit("error: --run NAME, --list or --page. `--list` has the names.")


if __name__ == "__main__":
    main()
