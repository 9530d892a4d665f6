"""What decides the future of a run, beside what transformers and TRL save: one file per process.

TRL 1.16 cuts a rollout into the micro-batches of several optimizer steps, and a checkpoint between
two of them has to hold those that are left. Its sampler draws the order of an epoch from a
generator that a resumed run begins anew. What is logged is a mean since the last line.
"""

import logging
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..run_files import warn_once

logger = logging.getLogger(__name__)


def write_state(checkpoint: Path, process: int, state: dict[str, Any]) -> None:
    """Write the state of a process into a checkpoint, without a rollout that no file can hold."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(state, _file(checkpoint, process))
    # A subclass may put any object into its rollouts, as a function or a lock.
    except (PicklingError, AttributeError, TypeError) as error:
        warn_once(
            f"The rollout under way cannot be saved ({error}). A run that goes on from here begins "
            "with a new one, as TRL would."
        )
        torch.save({**state, "window": None}, _file(checkpoint, process))


def read_state(checkpoint: str | Path | None, process: int) -> dict[str, Any]:
    """Return the state of a process; nothing, where a checkpoint has none, as one of TRL's."""
    if checkpoint is None or not _file(Path(checkpoint), process).is_file():
        return {}
    file = _file(Path(checkpoint), process)
    # Tensors and plain values alone: what is read here runs no code.
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    # A subclass may put any object into its rollouts.
    except UnpicklingError as error:
        logger.warning(
            f"{file} holds more than tensors and plain values ({str(error).splitlines()[0]}), so "
            "the run goes on as TRL would, with a new rollout and the first order of the data."
        )
        return {}


def of_any_run(state: dict[str, Any]) -> dict[str, Any]:
    """Return what of a state is true of a run with other settings: what its critic has learned.

    The order of other data, and micro-batches of another size, would mean nothing there.
    """
    return {name: state[name] for name in state.keys() & {"critic"}}


def _file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"run_state_{process}.pt"


class DataOrder(TrainerCallback):
    """The order of the prompts: the generator that a sampler draws each epoch's from."""

    def __init__(self) -> None:
        self._generator: torch.Generator | None = None
        # Before the order of this epoch was drawn, and the step that the epoch began with.
        self._at_beginning: Tensor | None = None
        self._first_step = 0
        self._restored: Tensor | None = None

    def follow(self, generator: torch.Generator | None) -> None:
        """Note the generator of a sampler; None where the data is a stream or not shuffled."""
        self._generator = generator

    def restore(self, state: Tensor | None) -> None:
        """Begin the next epoch as it was when `state` was the generator's."""
        self._restored = state

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._generator is None:
            return
        if self._restored is not None:
            self._generator.set_state(self._restored)
            self._restored = None
        self._at_beginning = self._generator.get_state()
        self._first_step = state.global_step

    def state(self, state: Any) -> Tensor | None:
        """Return what `restore` needs to go on, in this epoch or with the next one.

        Args:
            state: of the trainer, between two steps.
        """
        is_over = state.global_step > self._first_step and float(state.epoch).is_integer()
        if is_over and self._generator is not None:
            return self._generator.get_state()
        return self._at_beginning
