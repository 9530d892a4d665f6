"""The tokens of a run, the time that they take at a known rate, and what that costs."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..run_files import METRICS_FILE, read_lines
from .geometry import Geometry

_HOUR = 3600


@dataclass(frozen=True)
class Cost:
    """What a run does.

    Args:
        steps: optimizer steps; None where the settings do not say how many.
        written: completion tokens of a step, on all GPUs.
        counted: tokens of a step as a run counts them: each row with its prompt.
        seconds: of a step; None without a rate.
        dollars: of a step; None without a rate and a price.
    """

    steps: int | None
    written: int
    counted: int
    seconds: float | None
    dollars: float | None

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        *,
        steps: int | None,
        rate: float | None,
        dollars_per_hour: float | None,
    ) -> "Cost":
        """Work it out.

        Args:
            rate: tokens per second of all GPUs together, as the lines of a run print it.
            dollars_per_hour: of one GPU.
        """
        g = geometry
        rows = g.gpus * g.batch * g.accumulation // g.iterations
        counted = rows * (g.prompt + g.completion)
        seconds = counted / rate if rate else None
        dollars = None
        if seconds is not None and dollars_per_hour is not None:
            dollars = seconds / _HOUR * dollars_per_hour * g.gpus
        return cls(steps, rows * g.completion, counted, seconds, dollars)


def measured_rate(run: Path) -> float:
    """Return the tokens per second of an earlier run, from its metrics.

    Raises:
        DataError: the folder holds no metrics of a run that trained.
    """
    tokens = 0.0
    seconds = 0.0
    step = 0
    file = run / METRICS_FILE
    for row in read_lines(file) if file.is_file() else []:
        if "step_time" in row and "num_tokens" in row:
            # A row has the mean over the steps since the one before it.
            seconds += row["step_time"] * (row["step"] - step)
            tokens = row["num_tokens"]
            step = row["step"]
    if not tokens or not seconds:
        raise DataError(
            f"{run}: no {METRICS_FILE} with step_time and num_tokens in it. Give the output folder "
            "of a run that has trained, or --tokens_per_second."
        )
    return tokens / seconds
