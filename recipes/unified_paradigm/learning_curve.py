"""Learning curves: measured during a training, and read between their points."""

import time
from collections.abc import Sequence
from typing import Any

from .methods import ONLINE
from .start import Start


def follow(trainer: Any, start: Start, name: str, tokens: int | None) -> list[dict[str, Any]]:
    """Measure the accuracy during training, and end the training when the budget is spent.

    Args:
        tokens: what the training data cost, or None for a method that samples during training.

    Returns:
        The learning curve: a list with its first point, which grows during training.
    """
    from transformers import TrainerCallback

    curve = LearningCurve(trainer, start, name, tokens)

    class EndWithBudget(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            share = curve.update(args, state, logs)
            control.should_training_stop |= share >= 1

    trainer.add_callback(EndWithBudget())
    return curve.points


class LearningCurve:
    """LearningCurve measures a model's accuracy at equal intervals of its training.

    For a method that samples during training, the progress is the spent share of the budget. For
    the other methods, whose token cost is known before, it is the share of the updates.
    """

    def __init__(self, trainer: Any, start: Start, name: str, tokens: int | None) -> None:
        self.trainer = trainer
        self.start = start
        self.name = name
        self.tokens = tokens
        self.spent = 0.0
        accuracy = start.accuracy(trainer.model)
        point = {"share": 0.0, "updates": 0, "tokens": 0, "seconds": 0.0, "accuracy": accuracy}
        self.points = [point]
        # Of the training, without what the points cost.
        self.seconds = 0.0
        self.measured_at = time.process_time()

    def update(self, args: Any, state: Any, logs: dict[str, Any]) -> float:
        """Count the tokens of a log, add a point if one is due, and return the progress."""
        if self.name in ONLINE:
            # The trainer logs the cost of a rollout under these two names.
            self.spent += logs.get("completions/mean_length", 0.0) * args.generation_batch_size
            self.spent += logs.get("monte_carlo/tokens", 0.0)
        if self.tokens is None:
            share = self.spent / self.start.settings.budget
        else:
            share = state.global_step / state.max_steps
        intervals = self.start.settings.points
        last_share = self.points[-1]["share"]
        # `last_share < 1`: transformers logs once more after the last update, and the curve has its
        # final point by then.
        if int(share * intervals) > int(last_share * intervals) and last_share < 1:
            self.measure(share, state.global_step)
        return share

    def measure(self, share: float, updates: int) -> None:
        """Add a point to the curve and print it."""
        self.seconds += time.process_time() - self.measured_at
        accuracy = self.start.accuracy(self.trainer.model)
        self.measured_at = time.process_time()
        point = {
            # The last rollout may exceed the budget.
            "share": min(share, 1.0),
            "updates": updates,
            "tokens": round(self.tokens or self.spent),
            "seconds": self.seconds,
            "accuracy": accuracy,
        }
        self.points.append(point)
        print(f"  {share:4.0%}  {updates} updates  accuracy {accuracy:.3f}", flush=True)


def accuracy_at(curve: Sequence[dict[str, Any]], progress: float, by: str = "share") -> float:
    """Return the accuracy at a share of the training, interpolated between measured points.

    Args:
        by: what `progress` counts: `"share"`, or `"seconds"`.
    """
    from numpy import interp

    places = []
    accuracies = []
    for point in curve:
        places.append(point[by])
        accuracies.append(point["accuracy"])
    return float(interp(progress, places, accuracies))


def gain_at_equal_time(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> float:
    """Return how far the first curve is ahead when the faster of the two has spent its budget."""
    seconds = min(first[-1]["seconds"], second[-1]["seconds"])
    return accuracy_at(first, seconds, "seconds") - accuracy_at(second, seconds, "seconds")


def gain_on_grid(curve: Sequence[dict[str, Any]], grid: Sequence[float]) -> list[float]:
    """Return the accuracy above the base's at every share of the training in `grid`."""
    # The first point of a curve is measured before the first update.
    base_accuracy = curve[0]["accuracy"]
    return [accuracy_at(curve, share) - base_accuracy for share in grid]
