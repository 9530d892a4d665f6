"""A callback that says during a run how it seems to game its reward, while it can be stopped."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..evaluation.cut_answers import ANSWERS_THAT_END
from ..process_log import get_logger
from ..run_files import warn_once
from .gaming import Finding, findings, write_findings

# It speaks in the main process alone.
logger = get_logger(__name__)

# A run is looked at when half of it is done, and then at each tenth: in the first half the form of
# an answer is often learned before anything else.
_FIRST, _PARTS = 5, 10
_ADVICE = "Is this what the reward is for? See completions with `grpo-hf credit RUN`."


class GamingWatch(TrainerCallback):
    """Say each sign once, and write `gaming.json` at the end."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._looked = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin anew; a run that goes on has been looked at until its checkpoint."""
        self._looked = self._part(state)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the run if another tenth of it is done."""
        part = self._part(state)
        # The end is looked at when all of it is on disk.
        if not state.is_world_process_zero or not max(self._looked + 1, _FIRST) <= part < _PARTS:
            return
        self._looked = part
        self._say(Path(args.output_dir), found_in(Path(args.output_dir), findings))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write what was found in the whole run."""
        if state.is_world_process_zero:
            self._say(Path(args.output_dir), found_in(Path(args.output_dir), write_findings))

    @staticmethod
    def _part(state: Any) -> int:
        """Return how many tenths of the run are done."""
        return _PARTS * state.global_step // max(1, state.max_steps)

    def _say(self, run: Path, found: list[Finding]) -> None:
        for finding in found:
            if finding.name not in self._said:
                self._said.add(finding.name)
                _warn(run, finding)


def say_findings(run: Path) -> None:
    """Look at a run whose held-out answers are there now, and say what is new."""
    for finding in found_in(run, write_findings):
        if finding.name != ANSWERS_THAT_END:
            _warn(run, finding)


def found_in(run: Path, look: Callable[[Path], list[Finding]]) -> list[Finding]:
    """Return what a look at a run finds; nothing, and a warning, where it fails."""
    try:
        return look(run)
    # A guard ends no run: the files may be of any version, and the texts of any kind.
    except Exception as error:
        warn_once(f"The run is not watched for gaming ({type(error).__name__}: {error}).")
        return []


def _warn(run: Path, finding: Finding) -> None:
    what_to_do = f"{finding.advice} {_ADVICE}".replace("RUN", shlex.quote(str(run)))
    logger.warning(f"Gaming the reward? {finding.text} {what_to_do}")
