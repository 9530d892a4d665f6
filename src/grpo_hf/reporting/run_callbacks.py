"""The callbacks by which a trainer reports its run, in the place of those of transformers."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler, PrinterCallback, ProgressCallback

from . import live_view
from .environment_file import EnvironmentFile
from .gaming_watch import GamingWatch
from .metrics_file import MetricsFile, PhaseTimes
from .progress import ProgressLine

# transformers' progress bar, and the dictionaries that it prints: the line takes their place.
_REPLACED = (ProgressCallback, PrinterCallback)


def report_callbacks(reward_names: list[str], args: Any) -> list[TrainerCallback]:
    """Return the callbacks that report a run: its files, and a view of it or a line per step."""
    kind = live_view.LiveView if live_view.is_wanted(args) else ProgressLine
    return [EnvironmentFile(), MetricsFile(), kind(reward_names), GamingWatch()]


def exchange_callbacks(handler: CallbackHandler, own: Sequence[TrainerCallback]) -> None:
    """Remove the callbacks that the line replaces from a trainer's, and add others.

    A subclass of a replaced callback is of the user's making, and stays. So they are removed as
    objects: by its type, transformers would remove an object of a subclass as well.
    """
    for callback in list(handler.callbacks):
        if type(callback) in _REPLACED:
            handler.remove_callback(callback)
    for callback in own:
        handler.add_callback(callback)
    # First of all, because every other callback shall find the times among what is logged.
    handler.callbacks.insert(0, PhaseTimes())
