"""The tokens of a run, the time that they take at a known rate, and what that costs."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..run_files import METRICS_FILE, in_order, read_lines
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
        at_most: whether every completion is counted as long as it may be.
    """

    steps: int | None
    written: int
    counted: int
    seconds: float | None
    dollars: float | None
    at_most: bool

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        *,
        steps: int | None,
        rate: float | None,
        dollars_per_hour: float | None,
        completion: float | None = None,
    ) -> "Cost":
        """Work it out.

        Args:
            rate: tokens per second of all GPUs together, as the lines of a run print it.
            dollars_per_hour: of one GPU.
            completion: tokens of a completion on average; by default the most it may have.
        """
        g = geometry
        rows = g.gpus * g.batch * g.accumulation // g.iterations
        length = g.completion if completion is None else completion
        counted = round(rows * (g.prompt + length))
        seconds = counted / rate if rate else None
        dollars = None
        if seconds is not None and dollars_per_hour is not None:
            dollars = seconds / _HOUR * dollars_per_hour * g.gpus
        return cls(steps, round(rows * length), counted, seconds, dollars, completion is None)


@dataclass(frozen=True)
class EarlierRun:
    """What the metrics of a run say about the time and the tokens of another.

    Args:
        rate: tokens per second.
        completion: tokens of a completion on average; None where the metrics do not say it.
    """

    rate: float
    completion: float | None


def earlier_run(run: Path) -> EarlierRun:
    """Return what an earlier run measured.

    Args:
        run: its output folder.

    Raises:
        DataError: the folder holds no metrics of a run that trained.
    """
    tokens = 0.0
    seconds = 0.0
    written = 0.0
    written_steps = 0
    step = 0
    file = run / METRICS_FILE
    rows = []
    for row in read_lines(file) if file.is_file() else []:
        if "step_time" in row and "num_tokens" in row:
            rows.append(row)
    for row in in_order(rows, step_of=lambda row: int(row["step"])):
        # A row has the mean over the steps since the one before it.
        steps = row["step"] - step
        seconds += row["step_time"] * steps
        tokens = row["num_tokens"]
        step = row["step"]
        if "completions/mean_length" in row:
            written += row["completions/mean_length"] * steps
            written_steps += steps
    if not tokens or not seconds:
        raise DataError(
            f"{run}: no {METRICS_FILE} with step_time and num_tokens in it. Give the output folder "
            "of a run that has trained, or --tokens_per_second."
        )
    return EarlierRun(tokens / seconds, written / written_steps if written_steps else None)
