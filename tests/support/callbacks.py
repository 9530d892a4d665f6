"""What transformers hands to the callbacks of a run."""

from pathlib import Path

from transformers import TrainerState, TrainingArguments

NAN = float("nan")
LOGS = {
    "loss": 0.1,
    "reward": 0.5,
    "rewards/gsm8k/mean": 0.25,
    "rewards/overlong/mean": NAN,
    "completions/mean_length": 9.5,
}


def state(step: int, *, steps: int = 10, main: bool = True, tokens: int = 0) -> TrainerState:
    return TrainerState(
        global_step=step, max_steps=steps, is_world_process_zero=main, num_input_tokens_seen=tokens
    )


def arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
