"""What a run prints while it trains: one readable line per logging step."""

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from ..run_files import say
from .metrics_file import finite

# Seconds for a completion, from which on a slow reward is worth a note.
_SLOW = 0.1
# Seconds of a rollout, from which on waiting for a reward is worth a note.
_LONG_WAIT = 1.0
# Two log events may be measured at the same instant.
_SHORTEST = 1e-9


class ProgressLine(TrainerCallback):
    """Print a line per logging step, and one per evaluation.

    A line shows rewards, KL and the length of completions; that of a step also shows tokens per
    second and the time that is left.
    """

    def __init__(self, reward_names: list[str]) -> None:
        self.reward_names = reward_names
        self._started = 0.0
        self._last_log = 0.0
        self._tokens = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.monotonic()
        self._last_log = self._started
        # A resumed run begins with the steps and tokens of the run before, which took no time here.
        self._first_step = state.global_step
        self._tokens = float(state.num_input_tokens_seen)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "eval_reward" in logs:
            say(evaluation_line(state.global_step, logs, self.reward_names))
        # The summary at the end of training has no loss either.
        if "loss" not in logs:
            return
        now = time.monotonic()
        # Absent where no rollout was made since the last line.
        tokens = float(logs.get("num_tokens", self._tokens))
        rate = (tokens - self._tokens) / max(now - self._last_log, _SHORTEST)
        done = state.global_step - self._first_step
        left = (now - self._started) / max(done, 1) * (state.max_steps - state.global_step)
        self._last_log = now
        self._tokens = tokens
        self.show_step((state.global_step, state.max_steps), logs, rate, left)

    def show_step(
        self, steps: tuple[int, int], logs: dict[str, Any], rate: float, left: float
    ) -> None:
        """Show what a step logs.

        Args:
            steps: the step, and how many there will be.
            rate: tokens per second since the last one.
            left: seconds until the end.
        """
        say(progress_line(*steps, logs, self.reward_names, rate, left))


def completions_due(step: int, logs: Mapping[str, Any], shown: int) -> tuple[bool, int]:
    """Return whether a log is one to show the completions with, and the step that is shown then.

    TRL shows them with whatever is logged, as with the summary at the end of the training, which
    comes after the last step has shown the same ones.

    Args:
        shown: the last step whose completions were shown.
    """
    runtimes = [name for name in logs if name.endswith("_runtime") and name != "train_runtime"]
    # An evaluation has completions of its own, which it logs once with the time that it took.
    if runtimes or any(name.startswith("eval_") for name in logs):
        return bool(runtimes), shown
    return step != shown, step


def progress_line(
    step: int,
    steps: int,
    logs: dict[str, Any],
    reward_names: list[str],
    tokens_per_second: float,
    seconds_left: float,
) -> str:
    """Return the line of one logging step.

    >>> logs = {"reward": 0.5, "rewards/gsm8k/mean": 0.25, "kl": 0.0012}
    >>> logs["completions/mean_length"] = 41.6
    >>> progress_line(20, 100, logs, ["gsm8k"], 1234.5, 75)
    'step  20/100  reward 0.500  gsm8k 0.250  kl 0.0012  length 42  1,234 tokens/s  1:15 left'
    """
    parts = [f"step {step:>{len(str(steps))}}/{steps}"]
    if "reward" not in logs:
        # With several updates per rollout, only the first of them logs rewards.
        parts.append("on the same rollout")
    parts += rollout_parts(logs, reward_names)
    if tokens_per_second:
        parts.append(f"{tokens_per_second:,.0f} tokens/s")
    return "  ".join(parts + left_part(step, steps, seconds_left))


def left_part(step: int, steps: int, seconds: float) -> list[str]:
    """Return how long the training goes on, or nothing: a comparison may follow the last step.

    >>> left_part(20, 100, 75), left_part(100, 100, 0)
    (['1:15 left'], [])
    """
    return [f"{time_text(seconds)} left"] if step < steps else []


def time_text(seconds: float) -> str:
    """Return seconds as a clock shows them.

    >>> time_text(75), time_text(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def evaluation_line(step: int, logs: dict[str, Any], reward_names: list[str]) -> str:
    """Return the line of an evaluation.

    >>> logs = {"eval_reward": 0.5, "eval_rewards/gsm8k/mean": 0.25, "eval_kl": 0.0012}
    >>> evaluation_line(20, logs, ["gsm8k"])
    'evaluation at step 20  reward 0.500  gsm8k 0.250  kl 0.0012'
    """
    of_rollouts = {name.removeprefix("eval_"): value for name, value in logs.items()}
    return "  ".join([f"evaluation at step {step}", *rollout_parts(of_rollouts, reward_names)])


def rollout_parts(logs: dict[str, Any], reward_names: list[str]) -> list[str]:
    """Return what a line says of rollouts: rewards, KL and lengths, where they are logged."""
    parts = []
    if "reward" in logs:
        parts.append(f"reward {_shown(logs['reward'])}")
        for name in reward_names:
            parts.append(_reward_part(name, logs))
    if "kl" in logs:
        # A step that was left out because of its numbers has none.
        kl = finite(logs["kl"])
        parts.append("kl -" if kl is None else f"kl {kl:z.4f}")
    if "completions/mean_length" in logs:
        parts.append(f"length {logs['completions/mean_length']:.0f}")
    return parts


def _reward_part(name: str, logs: dict[str, Any]) -> str:
    """Return a reward's mean and standard deviation, with notes on what is wrong with it.

    The notes are the share of completions with a value if that is below 1, failures by reason, the
    median and 99th percentile of the time for a completion if the reward is slow, and how long the
    run waited for it.
    """
    prefix = f"rewards/{name}/"
    values = {}
    for key, value in logs.items():
        if key.startswith(prefix):
            values[key.removeprefix(prefix)] = value
    shown = f"{name} {_shown(values.get('mean'))}"
    if finite(values.get("std")) is not None:
        shown += f"±{values['std']:.2f}"
    notes = []
    # Reward models have neither this number nor the others below: TRL scores them.
    if values.get("judged", 1) < 1:
        notes.append(f"{values['judged']:.1%} judged")
    for key, share in values.items():
        if key.startswith("failed/") and share:
            reason = key.removeprefix("failed/").replace("_", " ")
            notes.append(f"{reason} {share:.1%}")
    if values.get("latency_p99", 0) >= _SLOW:
        notes.append(f"scored in {values['latency_p50']:.2f} s, p99 {values['latency_p99']:.2f} s")
    if values.get("waited", 0) >= _LONG_WAIT:
        notes.append(f"waited for {values['waited']:.0f} s")
    return f"{shown} ({', '.join(notes)})" if notes else shown


def _shown(value: float | None) -> str:
    return "-" if finite(value) is None else f"{value:.3f}"
