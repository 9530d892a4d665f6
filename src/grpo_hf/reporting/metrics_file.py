"""Every number that a run logs, in `metrics.jsonl`."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

METRICS_FILE = "metrics.jsonl"


class MetricsFile(TrainerCallback):
    """Append everything that is logged to `metrics.jsonl` in the output folder, one object per logging step."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        values = {key: finite(value) for key, value in logs.items()}
        with (Path(args.output_dir) / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **values}) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The logged steps of a run, oldest first; of a step that was logged again after a resume, the last."""
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    by_step = {row["step"]: row for row in map(json.loads, lines) if "reward" in row}
    return [by_step[step] for step in sorted(by_step)]


def finite(value: Any) -> Any:
    """A value as JSON has it: no NaN or infinity, and a scalar of numpy or torch as a plain number."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
