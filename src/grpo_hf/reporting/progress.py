"""What a run says while it runs: one readable line a step, every number in metrics.jsonl, and a folder of its own."""

import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .metrics_file import MetricsFile, finite

# transformers' bar, and the dictionaries that it prints.
REPLACED_CALLBACKS = (ProgressCallback, PrinterCallback)


def progress_callbacks(reward_names: list[str]) -> list[TrainerCallback]:
    """Return what says how a run goes: `metrics.jsonl`, and a line per logging step."""
    return [MetricsFile(), ProgressLine(reward_names)]


class ProgressLine(TrainerCallback):
    """Print a line per logging step: rewards, KL, completion length, tokens per second and time left."""

    def __init__(self, reward_names: list[str]) -> None:
        self.reward_names = reward_names
        self._started = self._tokens = self._last_log = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = self._last_log = time.monotonic()
        self._first_step, self._tokens = state.global_step, float(state.num_input_tokens_seen)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        now, tokens = (
            time.monotonic(),
            float(logs.get("num_tokens", self._tokens)),
        )  # absent where no rollout was made
        rate = (tokens - self._tokens) / max(now - self._last_log, 1e-9)
        done = state.global_step - self._first_step
        left = (now - self._started) / max(done, 1) * (state.max_steps - state.global_step)
        self._last_log, self._tokens = now, tokens
        print(
            progress_line(state.global_step, state.max_steps, logs, self.reward_names, rate, left),
            flush=True,
        )


def progress_line(
    step: int,
    steps: int,
    logs: dict[str, Any],
    reward_names: list[str],
    tokens_per_second: float,
    seconds_left: float,
) -> str:
    """One line about one logging step.

    >>> logs = {"reward": 0.5, "rewards/gsm8k/mean": 0.25, "kl": 0.0012, "completions/mean_length": 41.6}
    >>> progress_line(20, 100, logs, ["gsm8k"], 1234.5, 75)
    'step  20/100  reward 0.500  gsm8k 0.250  kl 0.0012  length 42  1,234 tokens/s  1:15 left'
    """
    parts = [f"step {step:>{len(str(steps))}}/{steps}"]
    if "reward" in logs:
        parts += [
            f"reward {_shown(logs['reward'])}",
            *(_reward_part(name, logs) for name in reward_names),
        ]
    else:
        parts.append("on the same rollout")
    if "kl" in logs:
        parts.append(f"kl {logs['kl']:.4f}")
    if "completions/mean_length" in logs:
        parts.append(f"length {logs['completions/mean_length']:.0f}")
    if tokens_per_second:
        parts.append(f"{tokens_per_second:,.0f} tokens/s")
    minutes, seconds = divmod(int(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    parts.append(
        f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
    )
    return "  ".join(parts)


def _reward_part(name: str, logs: dict[str, Any]) -> str:
    """A reward's mean and standard deviation; and what is not as it should be: completions without a value, failures by
    reason, 0.1 s or more for a completion (median, 99th percentile)."""
    prefix = f"rewards/{name}/"
    of = {key.removeprefix(prefix): value for key, value in logs.items() if key.startswith(prefix)}
    shown = f"{name} {_shown(of.get('mean'))}"
    if finite(of.get("std")) is not None:
        shown += f"±{of['std']:.2f}"
    notes = [f"{of['judged']:.1%} judged"] if of.get("judged", 1) < 1 else []
    failed = (
        (key.removeprefix("failed/").replace("_", " "), of[key])
        for key in of
        if key.startswith("failed/")
    )
    notes += [f"{reason} {share:.1%}" for reason, share in failed if share]
    if of.get("latency_p99", 0) >= 0.1:
        notes.append(f"scored in {of['latency_p50']:.2f} s, p99 {of['latency_p99']:.2f} s")
    return f"{shown} ({', '.join(notes)})" if notes else shown


def _shown(value: float | None) -> str:
    return "-" if finite(value) is None else f"{value:.3f}"
