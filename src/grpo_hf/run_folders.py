"""What lies in a folder or file that a command names: a recipe, a run, a run that trains now.

Nothing heavy is imported, so that a mistake in a name is reported at once.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import yaml

from .errors import (
    ConfigError,
    DataError,
    ModelError,
    OutputExistsError,
    did_you_mean_path,
)
from .run_files import METRICS_FILE, RECIPE_FILE, RUN_FILE

# Files of which one makes a folder that of an adapter, or of a model.
ADAPTER_FILE = "adapter_config.json"
MODEL_FILE = "config.json"
# transformers' default.
_SAVE_STEPS = 500


def recipe_at(place: Path) -> Path:
    """Return the recipe at a place, which may be the folder that `grpo-hf init` has made.

    Raises:
        ConfigError: there is none.
    """
    if place.is_dir():
        file = place / RECIPE_FILE
        if file.is_file():
            return file
        found = ", ".join(sorted(each.name for each in place.glob("*.y*ml")))
        raise ConfigError(
            f"{place}: a folder without {RECIPE_FILE}. Expected a recipe, which is a YAML file; "
            f"the folder holds {found or 'none'}."
        )
    if not place.exists():
        siblings = sorted(each.name for each in place.parent.glob("*.y*ml"))
        raise ConfigError(f"{place}: no such recipe.{did_you_mean_path(place, siblings)}")
    if place.suffix == ".py":
        raise ConfigError(
            f"{place} is a Python file; expected a recipe, which is a YAML file. One with "
            f"`rewards: [{place}:FUNCTION]` takes a reward from it, and `grpo-hf rewards test "
            f"{place}:FUNCTION` tries that on texts."
        )
    return place


def check_folder(run: Path) -> None:
    """Check that the folder of a run is there.

    Raises:
        DataError: there is no such folder.
    """
    if not run.is_dir():
        siblings = sorted(each.name for each in run.parent.glob("*") if each.is_dir())
        raise DataError(
            f"{run}: no such folder.{did_you_mean_path(run, siblings)} Expected the output "
            "folder of a run."
        )


def check_free(place: Path) -> None:
    """Check that nothing is written over.

    Raises:
        OutputExistsError: it is there already.
    """
    if place.exists():
        raise OutputExistsError(
            f"{place} exists, and is not overwritten. Remove it, or give another --to."
        )


def check_run(run: Path) -> None:
    """Check that a folder is that of a run which has logged.

    Raises:
        DataError: it is not there, or is no run's.
    """
    check_folder(run)
    if not (run / METRICS_FILE).is_file():
        at_work = run_at_work(run)
        if at_work is not None:
            raise DataError(
                f"{run}: a run is training there now ({at_work}), and has logged no step yet. Ask "
                "again once it has."
            )
        raise DataError(f"{run} is not the output folder of a run: it has no {METRICS_FILE}.")


def check_weights(run: Path) -> None:
    """Check that a folder holds what may be weights of a run; whether they are whole is seen later.

    Raises:
        DataError: there is no such folder.
        ModelError: it holds none; the message says whether a run is under way.
    """
    check_folder(run)
    names = (ADAPTER_FILE, f"*/{ADAPTER_FILE}", MODEL_FILE, "checkpoint-*")
    if not any(any(run.glob(name)) for name in names):
        raise ModelError(no_weights_in(run))


def no_weights_in(run: Path) -> str:
    """Return what to do about a folder without weights."""
    at_work = run_at_work(run)
    if at_work is not None:
        return (
            f"{run}: a run is training there now ({at_work}), and has saved nothing yet. "
            f"{_first_save(run)} Ctrl-C there, or SIGTERM to its process, makes it save a "
            "checkpoint and leave."
        )
    step = _last_step(run)
    if step is not None:
        return (
            f"{run}: its run has ended at step {step} and saved nothing. {_first_save(run)} Train "
            "again, with a smaller --save_steps."
        )
    return (
        f"{run} holds no adapter ({ADAPTER_FILE}), no model ({MODEL_FILE}) and no whole "
        "checkpoint. Expected the output folder of a run that has saved."
    )


def run_at_work(folder: Path) -> str | None:
    """Return which other process trains in a folder now, and its step; None if none is known to."""
    if not _is_held(folder / RUN_FILE):
        return None
    noted = noted_in(folder)
    process, machine = noted.get("process"), noted.get("machine")
    is_here = machine == socket.gethostname()
    # A notebook may make a second trainer. Of a run that is only starting, nothing is noted yet.
    if process is None or (is_here and (process == os.getpid() or not _is_alive(process))):
        return None
    where = "" if is_here else f" on {machine}"
    step, steps = _last_step(folder), settings_of(folder).get("max_steps")
    length = f" of {steps}" if isinstance(steps, int) and steps > 0 else ""
    return f"process {process}{where}, step {step or 0}{length}"


def _is_held(marker: Path) -> bool:
    """Whether a process holds the lock of a run."""
    if sys.platform == "win32" or not marker.is_file():
        return False
    import fcntl

    try:
        with marker.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    # It may not be read, or the file system has no locks.
    except OSError:
        return False
    return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        # Somebody else's process may not be signalled, and is alive.
        return isinstance(error, PermissionError)
    return True


def noted_in(folder: Path) -> dict[str, Any]:
    """Return what a run has noted of itself; nothing where it has not, or cannot be read."""
    try:
        noted = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _last_step(folder: Path) -> int | None:
    """Return the last step that a run has logged."""
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            step = json.loads(line)["step"]
        # The last line may be half written.
        except (ValueError, KeyError, TypeError):
            continue
        return int(step)
    return None


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a run's recipe, none where it has no recipe."""
    try:
        values = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _first_save(folder: Path) -> str:
    """Return a sentence on when a run saves."""
    settings = settings_of(folder)
    steps, most = settings.get("save_steps", _SAVE_STEPS), settings.get("max_steps")
    by_steps = settings.get("save_strategy", "steps") == "steps"
    # A number below 1 is a share of all steps.
    if not settings or not by_steps or not isinstance(steps, int | float) or steps < 1:
        return "A run saves at its end, and before as its save_steps say."
    if isinstance(most, int) and 0 < most <= steps:
        return f"It saves at its end, step {most} (save_steps is {steps:g})."
    return f"Its first checkpoint comes at step {steps:g} (save_steps)."
