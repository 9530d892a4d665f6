"""`environment.jsonl`: a line for each start of a run."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..run_files import append_lines
from .environment import ENVIRONMENT_FILE, describe_start


class EnvironmentFile(TrainerCallback):
    """A callback that appends a line to `environment.jsonl` when a training begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        start = describe_start(args) | {"step": state.global_step}
        line = json.dumps(start, ensure_ascii=False) + "\n"
        append_lines(Path(args.output_dir) / ENVIRONMENT_FILE, [line])
