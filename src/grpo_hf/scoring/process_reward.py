"""The step reward behind `process_reward="monte_carlo(...)"`: it samples from the policy.

algorithm/monte_carlo.py has the equation. Here the sampler is the trainer's rollout, and the judge
is the first of its rewards.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..algorithm.monte_carlo import Sampler, gains, mean_of_judged, step_values
from ..errors import ConfigError, RewardSpecError, did_you_mean
from ..run_context import Policy, RunContext, RunTraits
from .judging import judge_by, number
from .registry import split_spec
from .reward import Reward
from .scored_reward import ScoredReward, values_of
from .settings import RewardSettings
from .signature import checked_reward
from .steps import SEPARATORS, StepRewards, found_steps

# What these options may be, the default first.
_CHOICES = {"credit": ("value", "gain"), "groups": ("all", "mixed")}


class MonteCarlo:
    """A reward function that values the steps of completions by continuations from the policy."""

    # It needs the whole batch, the model of this process, and the first reward's values.
    reward_settings = RewardSettings(batched=True, in_process=True, early=False)
    # Asks for `first_values`: the values of the first reward for the same completions.
    follows_first_reward = True

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self._judge: ScoredReward | None = None

    def attach(self, policy: Policy, judge: ScoredReward) -> None:
        """Sample from this policy from now on, and judge continuations by this reward."""
        self._policy = policy
        self._judge = judge

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        log_metric: Any,
        *,
        n: int = 4,
        steps: str = "lines",
        credit: str = "value",
        groups: str = "all",
        **columns: Any,
    ) -> list[StepRewards | None]:
        """Return the values of the steps of each completion.

        They are None for a completion without steps, and for all while there is no policy.
        `monte_carlo/beginnings`, `tokens` and `time` (seconds) log the cost, the mean over
        processes.

        Args:
            n: continuations of each beginning.
            steps: how a completion is cut; see `split_steps`.
            credit: `"value"`, or `"gain"`: what a step adds to the value before it, at first to the
                mean reward of the completions of its group.
            groups: `"all"`, or `"mixed"`: only groups whose completions earned different rewards.
                The completions of the other groups count as completions without steps.
        """
        # A reward is tried before there is a model. An evaluation needs no credit for steps, and
        # continuations are expensive.
        policy = self._policy
        if policy is None or self._judge is None or not policy.context().training:
            return [None] * len(completions)
        start = time.perf_counter()
        first_values = columns.pop("first_values", None)
        state = columns.pop("trainer_state", None)
        # Columns of the data are lists; what TRL passes beside them, such as `log_extra`, is not.
        lists = {}
        for name, values in columns.items():
            if isinstance(values, list):
                lists[name] = values
        # A subclass that calls rewards by itself does not hand on what the first one said.
        if first_values is None:
            call = {"prompts": prompts, "completion_ids": completion_ids, "trainer_state": state}
            first_values = values_of(self._judge.score(completions, lists | call))
        earned = list(map(number, first_values))
        of_groups = _groups(policy.context(), earned)
        # By completion: the characters at which its steps end, and the tokens.
        step_characters = []
        step_tokens = []
        for completion, ids, group in zip(completions, completion_ids, of_groups, strict=True):
            found: tuple[list[int], list[int]] = ([], [])
            if group.mixed or groups == "all":
                found = found_steps(policy.tokenizer, completion, ids, steps)
            step_characters.append(found[0])
            step_tokens.append(found[1])

        def sample(prompt_ids: list[list[int]], tokens: int) -> list[list[int]]:
            return policy.sample(prompt_ids, tokens, n)

        # One call samples as many continuations as the rollout has rows, which is known to fit.
        values = step_values(
            policy.tokenize(prompts),
            completion_ids,
            step_tokens,
            earned,
            groups=[group.number for group in of_groups],
            n=n,
            sampler=Sampler(sample, policy.max_completion_length, len(prompts)),
            judge=judge_by(self._judge, policy.tokenizer, prompts, lists, state),
        )
        of_steps = values.of_steps
        if credit == "gain":
            of_steps = []
            for group, of_row in zip(of_groups, values.of_steps, strict=True):
                of_steps.append(gains([group.mean, *of_row]))
        log_metric("monte_carlo/beginnings", values.beginnings)
        log_metric("monte_carlo/tokens", values.tokens)
        log_metric("monte_carlo/time", time.perf_counter() - start)
        results = []
        for ends, rewards in zip(step_characters, of_steps, strict=True):
            results.append(StepRewards(ends, rewards) if ends else None)
        return results


def process_reward(spec: str) -> Reward:
    """Return the step reward that `process_reward` names: `monte_carlo`, perhaps with options.

    Raises:
        RewardSpecError: the spec names something else, or an option is not possible.
    """
    name, options = split_spec(spec.strip())
    if name != "monte_carlo":
        raise RewardSpecError(
            f"process_reward is {spec!r}; expected monte_carlo, or "
            f"monte_carlo(n=4, steps='lines').{did_you_mean(name, ['monte_carlo'])} A step reward "
            "of your own is named among the rewards."
        )
    reward = checked_reward(MonteCarlo(), name, name, options, "grpo-hf")
    n = reward.options.get("n", 4)
    steps = reward.options.get("steps", "lines")
    # Not isinstance: True is an int, and no number of continuations.
    if type(n) is not int or n < 1 or not isinstance(steps, str) or not steps:
        raise _wrong_option(spec, "")
    for option, possible in _CHOICES.items():
        chosen = reward.options.get(option, possible[0])
        if chosen not in possible:
            raise _wrong_option(spec, did_you_mean(str(chosen), possible))
    # A text of the user's own may mark the end of a step, but a typo of a known way may not.
    if steps not in SEPARATORS and (hint := did_you_mean(steps, SEPARATORS)):
        raise RewardSpecError(
            f"process_reward is {spec!r}: steps {steps!r} would end at that text.{hint}"
        )
    return reward


def _wrong_option(spec: str, hint: str) -> RewardSpecError:
    return RewardSpecError(
        f"process_reward is {spec!r}; expected n of at least 1, steps lines, blank_lines, "
        "sentences or the text that marks the end of a step, credit one of "
        f"{', '.join(_CHOICES['credit'])}, and groups one of {', '.join(_CHOICES['groups'])}.{hint}"
    )


def with_process_reward(rewards: list[Any] | None, spec: str | None) -> list[Any] | None:
    """Return a trainer's rewards, with the one that `process_reward` names as the last."""
    if spec is None:
        return rewards
    return [*(rewards or []), ScoredReward(process_reward(spec))]


def attach_policy(rewards: Sequence[Any], policy: Policy, traits: RunTraits) -> None:
    """Let the process reward among a trainer's rewards, if there is one, sample from its policy.

    Raises:
        ConfigError: the first reward is no function, every process would have to sample as much as
            the others, or a completion is more than what the model continues a text with.
    """
    for entry in rewards:
        if isinstance(entry, ScoredReward) and isinstance(entry.reward.function, MonteCarlo):
            first = rewards[0]
            if not isinstance(first, ScoredReward) or first is entry:
                raise ConfigError(
                    "process_reward judges continuations by the first reward, which has to be a "
                    "function."
                )
            _check_traits(traits)
            entry.reward.function.attach(policy, first)


def _check_traits(traits: RunTraits) -> None:
    # Both need every process in every forward, and one that has less to sample would not come.
    if traits.samples_together or traits.sharded_weights:
        raise ConfigError(
            "process_reward 'monte_carlo' samples another number of continuations on every "
            "process, which TRL's vLLM server, an engine over several GPUs "
            "(vllm_tensor_parallel_size) and sharded weights (FSDP, DeepSpeed) do not allow. Set "
            "--vllm_sync adapter, or leave one of the two out."
        )
    if traits.has_tools or traits.has_rollout_function or traits.reads_images:
        raise ConfigError(
            "process_reward 'monte_carlo' continues texts, and knows no tools, environments, "
            "rollout functions or images. Leave one of the two out."
        )


class _Group(NamedTuple):
    """A completion's group: its number, the mean of what it earned, and whether that differs."""

    number: int
    mean: float
    mixed: bool


def _groups(run: RunContext, earned: list[float]) -> list[_Group]:
    """Return the group of each completion of this process; it may lie on several processes."""
    # Every process makes this call, also one whose completions have no steps.
    everywhere = run.gather_list(earned)
    groups = []
    for row in range(len(everywhere))[run.mine(len(earned))]:
        number = row // run.group_size
        members = everywhere[number * run.group_size : (number + 1) * run.group_size]
        judged = {reward for reward in members if not math.isnan(reward)}
        groups.append(_Group(number, mean_of_judged(members), len(judged) > 1))
    return groups
