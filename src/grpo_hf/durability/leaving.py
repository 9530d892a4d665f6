"""How a run leaves on a signal: between two optimizer steps, with a checkpoint, on all processes.

A rollout under way is abandoned where the run can go back to the end of the last step; an update is
finished, and so is what is being written. transformers has `enable_jit_checkpoint` for this, which
saves after the backward pass and before the step, on each process for itself, and exits with 0: a
run that goes on from there is another run.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from ..reporting.live_view import close_views, show_notice
from . import signals

# Seconds that torch's launcher takes at most to send a signal on.
_FORWARDING = 2.0


class Leaving(KeyboardInterrupt):
    """Every process leaves now, and is or can go back to where the last step ended."""


class _CutShort(KeyboardInterrupt):
    """This process samples no further; the others do not know yet."""


class Departure(TrainerCallback):
    """The wish to leave, of one call of `train`: noted when a signal comes, kept when it is safe.

    Without arguments it is that of a trainer that does not train, which never leaves.

    Args:
        accelerator: for what all processes decide together.
        place: notes where a run is between two steps, and returns what goes back there.
        resumes: whether the run begins with a checkpoint.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        place: Callable[[], Callable[[], None]] = lambda: lambda: None,
        resumes: bool = False,
    ) -> None:
        self._accelerator = accelerator
        self._place = place
        self._resumes = resumes
        self._signal, self._signalled_at = 0, 0.0
        # Whether the handler may raise, and what.
        self._raises: type[BaseException] | None = None
        # Whether nothing happened since the last step but what `_go_back` undoes.
        self._can_go_back = False
        self._go_back: Callable[[], None] = lambda: None
        self._saved_step: int | None = None

    @contextmanager
    def heeded(self, trainer: Any) -> Iterator[None]:
        """Let signals ask a trainer to leave, for a block."""
        # Last of all callbacks, so that the others have done what belongs to a step or a save.
        trainer.add_callback(self)
        try:
            with signals.handled(self._note):
                yield
        finally:
            trainer.remove_callback(self)
            self._can_go_back = False
        # It came when the training was over, and is for what follows.
        if self._signal and threading.current_thread() is threading.main_thread():
            signal.raise_signal(self._signal)

    def _note(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        if self._signal:
            # A launcher and its process group may repeat the others; people repeat this one.
            if number == signal.SIGINT and not self._is_the_same():
                signals.leave_at_once(number)
            return
        self._signal, self._signalled_at = number, time.monotonic()
        next_one = "a second Ctrl-C" if number == signal.SIGINT else "Ctrl-C"
        said = (
            f"{signals.name_of(number)}: the run leaves at the end of a step, with a checkpoint; "
            f"{next_one} leaves at once."
        )
        # Within the view that is on the screen a line would be torn.
        if not show_notice(said):
            signals.say_now(said)
        raises, self._raises = self._raises, None
        if raises is not None:
            raise raises

    def _is_the_same(self) -> bool:
        """Return whether a signal that comes now may be the first one, which came twice."""
        # torch's launcher sends on what this process got as well.
        is_launched = "TORCHELASTIC_RUN_ID" in os.environ
        if not is_launched and self._signal != signal.SIGINT:
            return False
        within = _FORWARDING if is_launched else signals.SAME_WITHIN
        return time.monotonic() - self._signalled_at < within

    # Safe points. All processes reach each of them, so they can decide together.

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._resumes:
            self._saved_step = state.global_step
        self._note_place()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note_place()
        if self._asked():
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # An evaluation samples, and a run that goes on does not repeat it.
        self._note_place()
        if self._asked():
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved_step = state.global_step
        self.leave_if_asked()

    def leave_if_asked(self) -> None:
        """Leave, if a signal has asked any process for it.

        Raises:
            Leaving: on all processes.
        """
        if self._asked():
            raise Leaving

    def logged(self) -> None:
        """Note that numbers were logged, which do not wait for a line any more."""
        if self._can_go_back:
            self._note_place()

    def _note_place(self) -> None:
        self._go_back = self._place()
        self._can_go_back = True

    def _asked(self) -> bool:
        """Return whether any process was asked, on all of them alike."""
        assert self._accelerator is not None
        if self._accelerator.num_processes > 1:
            own = torch.tensor([self._signal], device=self._accelerator.device)
            common = int(self._accelerator.gather(own).max())
            if common and not self._signal:
                # What a launcher sends to one process after the other is still to come here.
                self._signal, self._signalled_at = common, time.monotonic()
        return bool(self._signal)

    # Rollouts

    @contextmanager
    def abandoning(self, training: bool) -> Iterator[None]:
        """Leave in the middle of a rollout, on one process.

        Only the first one since the last step can be abandoned: what follows a rollout cannot be
        undone. Several processes wait for each other in a rollout, see `sampled` and `agreed`.
        """
        if self._is_alone and training and self._can_go_back:
            with self._interrupted_by(Leaving):
                yield
            self._can_go_back = False
        else:
            yield

    def sampled(
        self, sample: Callable[[], Any], prompt_ids: list[list[int]], *, filler: int
    ) -> Any:
        """Sample completions; where the process is asked to leave, end them all here.

        The other processes wait for this one where its completions come together with theirs. So
        it goes on to there, with completions of one token.
        """
        if self._is_alone or not self._can_go_back:
            return sample()
        try:
            with self._interrupted_by(_CutShort):
                return sample()
        except _CutShort:
            return [[filler] for _ in prompt_ids], None

    def agreed(self, training: bool) -> None:
        """Let several processes leave together when completions were sampled.

        Raises:
            Leaving: on all processes.
        """
        if not self._is_alone and training and self._can_go_back:
            self.leave_if_asked()
            self._can_go_back = False

    @property
    def _is_alone(self) -> bool:
        return self._accelerator is None or self._accelerator.num_processes == 1

    @contextmanager
    def _interrupted_by(self, error: type[BaseException]) -> Iterator[None]:
        """Raise an error in the block when a signal comes, or has come already."""
        self._raises = error
        try:
            if self._signal:
                raise error
            yield
            # A reward with a bare `except` has swallowed it, and what it returned is not its value.
            if self._signal:
                raise error
        finally:
            self._raises = None

    # The end

    def leave(self, save: Callable[[], None], folder: Path, step: int) -> None:
        """Go back to the end of the last step, write a checkpoint of it if there is none, and go.

        Args:
            save: writes a checkpoint.
            folder: the output folder of the run.
            step: optimizer steps that are done.

        Raises:
            Left: because of a signal.
            Interrupted: because of Ctrl-C, so that a notebook goes on.
        """
        assert self._accelerator is not None
        if self._saved_step != step:
            self._go_back()
            save()
        # What follows is to be the last line on the screen.
        close_views()
        if self._accelerator.is_main_process:
            print(
                f"{signals.name_of(self._signal)}: left after step {step}, which is in "
                f"{folder / f'checkpoint-{step}'}. The same command with "
                "--resume_from_checkpoint auto goes on from there.",
                file=sys.stderr,
                flush=True,
            )
        # The traceback of how it got here helps nobody.
        raise signals.left(self._signal) from None
