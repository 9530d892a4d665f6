"""Say in words that a run cannot learn, while it can still be stopped.

Nothing here changes what is trained. What is looked at are the numbers that a run logs, and the
largest weight that trains.
"""

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from ..config import option
from ..process_log import get_logger
from .finite import check_weights, largest_weight

# It speaks in the main process alone.
logger = get_logger(__name__)

# Optimizer steps for which a sign has to last: a tenth of a short run's, ten of a long one's.
_LASTS, _LEAST, _SHARE = 10, 3, 4
# How far weights may grow: several times the largest at the start, and never below this number.
_GROWTH, _LEAST_WEIGHT = 5.0, 1.0
# The share from which most completions are cut off, or most groups agree.
_MOSTLY = 0.5


# What to do, said by a run and by a look at the base before one.
NOTHING_EARNED = (
    "if right answers earn 0, mend the reward or the prompt that asks for its format; else begin "
    "with easier prompts, a reward for parts of an answer, or a model that has learned the format."
)
ALL_ALIKE = (
    "Use prompts that the model solves sometimes, a reward with more than two values, a higher "
    "temperature, more completions a group (num_generations), or --dynamic_sampling true."
)
MOSTLY_CUT = (
    "Where the answer comes at their end, it is not there: raise max_completion_length, or ask for "
    "shorter answers in the prompt. Where it comes first, nothing is lost."
)


@dataclass(frozen=True)
class Sign:
    """A sign that a run learns nothing.

    Args:
        name: of the sign.
        holds: reads it from a logged line of numbers.
        words: what is said; `{steps}` is for how many steps it has lasted, `{run}` the folder.
        at_once: whether once is enough.
        beside: another sign that says more; with it, this one is not said.
    """

    name: str
    holds: Callable[[dict[str, Any]], bool]
    words: str
    at_once: bool = False
    beside: str = ""


def _nothing_judged(logs: dict[str, Any]) -> bool:
    # TRL writes None where it has NaN alone.
    return logs["reward"] is None or math.isnan(logs["reward"])


def _overflows(logs: dict[str, Any]) -> bool:
    if _nothing_judged(logs):
        return False
    return math.isinf(logs["reward"]) or logs.get("reward_std") == math.inf


def _nothing_earned(logs: dict[str, Any]) -> bool:
    return logs["reward"] == 0 and logs.get("reward_std") == 0 and not _speaks_of_steps(logs)


def _all_alike(logs: dict[str, Any]) -> bool:
    if _nothing_earned(logs) or _speaks_of_steps(logs):
        return False
    return logs.get("frac_reward_zero_std") == 1


def _mostly_alike(logs: dict[str, Any]) -> bool:
    if _nothing_earned(logs) or _speaks_of_steps(logs):
        return False
    return bool(logs.get("frac_reward_zero_std", 0) >= _MOSTLY)


def _speaks_of_steps(logs: dict[str, Any]) -> bool:
    # Steps may differ where their means, which stand for a completion here, do not.
    return any(name.startswith("rewards/") and name.endswith("/steps") for name in logs)


def _all_clipped(logs: dict[str, Any]) -> bool:
    return logs.get("completions/clipped_ratio") == 1


def _mostly_clipped(logs: dict[str, Any]) -> bool:
    return bool(logs.get("completions/clipped_ratio", 0) > _MOSTLY)


def _no_gradient(logs: dict[str, Any]) -> bool:
    # These make every advantage 0, which is another reason for a gradient of 0.
    if _nothing_judged(logs) or _overflows(logs):
        return False
    return logs.get("grad_norm") == 0 and logs.get("frac_reward_zero_std", 1) < 1


SIGNS = (
    Sign(
        "nothing judged",
        _nothing_judged,
        "Every reward returned None for every completion of the last {steps} steps, so there is "
        "nothing to learn from. Look at the columns that the rewards read: `grpo-hf rewards check "
        "RECIPE` tries them on rows of the data.",
    ),
    Sign(
        "rewards overflow",
        _overflows,
        "The rewards are so large that their standard deviation overflows float32, which makes "
        "every advantage 0: nothing is learned. Scale the rewards to numbers around 1, or clip "
        "them.",
        at_once=True,
    ),
    Sign(
        "nothing earned",
        _nothing_earned,
        "Every completion of the last {steps} steps earned 0, so there is nothing to learn from. "
        f"Look at completions (`grpo-hf credit {{run}}`): {NOTHING_EARNED}",
    ),
    Sign(
        "no difference",
        _all_alike,
        "All completions of each group earned the same in the last {steps} steps, so every "
        f"advantage is 0 and only the KL term is left to learn from. {ALL_ALIKE}",
    ),
    Sign(
        "little difference",
        _mostly_alike,
        "In half of the groups or more all completions earned the same, in each of the last "
        "{steps} steps, and such groups teach nothing. Where most answers are right, take harder "
        "prompts or stop here; where most are wrong, easier ones.",
        beside="no difference",
    ),
    Sign(
        "all clipped",
        _all_clipped,
        "Every completion of the last {steps} steps was cut off at max_completion_length before "
        "its end. Raise max_completion_length, or see that the model knows how to end: its chat "
        "template, its end-of-sequence token, a prompt that asks for short answers.",
    ),
    Sign(
        "mostly clipped",
        _mostly_clipped,
        "Most completions of the last {steps} steps were cut off at max_completion_length. "
        f"{MOSTLY_CUT}",
        beside="all clipped",
    ),
    Sign(
        "no gradient",
        _no_gradient,
        "The gradient was exactly 0 in the last {steps} steps, although completions earned "
        "different rewards: the weights do not move any more. The policy is likely so sure of its "
        "tokens that their log-probabilities are 0: lower learning_rate and begin again from a "
        "checkpoint before that.",
    ),
)

_GROWN = (
    "The largest weight that trains is {largest:.3g} at step {step}, and was {start:.3g} at the "
    "start: the run diverges. learning_rate is {rate:g}; for LoRA with AdamW 1e-6 to 1e-3 is "
    "usual. Stop, and begin again with a smaller one."
)

_OLDER = "Resume from an older checkpoint, with a lower learning_rate."


class DeadRunWatch(TrainerCallback):
    """A callback that says once for each sign that a run learns nothing, and what to do."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._said: set[str] = set()
        self._start: float | None = None
        self._last_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Remember how large the weights are.

        Raises:
            NotFiniteError: a weight is not finite, which a checkpoint brought along.
        """
        self._last_step = state.global_step
        self._since.clear()
        model = objects.get("model")
        if model is not None:
            check_weights(model, f"in the checkpoint of step {state.global_step}", _OLDER)
            self._start = largest_weight(model)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        **objects: Any,
    ) -> None:
        """Look for the signs in a line of numbers of the training."""
        # Evaluations have other names, and the summary at the end has no loss.
        if not logs or "loss" not in logs:
            return
        steps = max(_LEAST, min(_LASTS, state.max_steps // _SHARE))
        # With several updates for a rollout, only the first of them logs rewards.
        if "reward" in logs:
            for sign in _signs_for(args):
                self._look(sign, logs, state.global_step, steps, args.output_dir)
        self._last_step = state.global_step
        self._look_at_weights(args, state, objects.get("model"))

    def _look(self, sign: Sign, logs: dict[str, Any], step: int, steps: int, run: str) -> None:
        """Say a sign that has lasted long enough."""
        if not sign.holds(logs):
            self._since.pop(sign.name, None)
            return
        # A line is about all steps since the line before.
        lasted = step - self._since.setdefault(sign.name, self._last_step)
        if sign.beside not in self._said and (sign.at_once or lasted >= steps):
            self._say(sign.name, sign.words.format(steps=lasted, run=shlex.quote(run)))

    def _look_at_weights(self, args: Any, state: Any, model: Any) -> None:
        """Say that the weights have grown beyond what training does."""
        if self._start is None or "growth" in self._said:
            return
        largest = largest_weight(model)
        if largest is not None and largest > _GROWTH * max(self._start, _LEAST_WEIGHT):
            numbers = {"largest": largest, "step": state.global_step, "start": self._start}
            self._say("growth", _GROWN.format(rate=args.learning_rate, **numbers))

    def _say(self, name: str, words: str) -> None:
        if name not in self._said:
            self._said.add(name)
            logger.warning(words)


def _signs_for(args: Any) -> list[Sign]:
    """Return the signs that mean something under the settings of a run."""
    signs = []
    for sign in SIGNS:
        if sign.holds in (_all_alike, _mostly_alike) and not _compares_groups(args):
            continue
        # Whatever ends at a stop string has no end-of-sequence token, and counts as cut off.
        stops = (args.generation_kwargs or {}).get("stop_strings")
        if stops and sign.holds in (_all_clipped, _mostly_clipped):
            continue
        signs.append(sign)
    return signs


def _compares_groups(args: Any) -> bool:
    """Whether a rollout whose groups have equal rewards has no advantages.

    The reward itself, a critic and rewards of steps give some, and dynamic sampling replaces the
    groups that are logged.
    """
    replaced = option(args, "dynamic_sampling") or option(args, "process_reward") is not None
    return option(args, "advantage_estimator") == "group" and not replaced
