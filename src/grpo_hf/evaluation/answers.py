"""A model's answers to prompts, and whether they are right.

Completions are greedy or sampled, and a reward says which of them are right. `statistics` makes
accuracies, pass@k and maj@k of that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ..config import GRPOConfig, option
from ..data.batching import parts
from ..data.completions import Completion, columns_of
from ..data.prompts import prompt_token_ids
from ..models.random_state import own_random_numbers
from ..models.shards import in_step
from ..rollout.conversations import ToolUse, conversing
from ..rollout.sampling import GREEDY, continuing
from ..scoring.judging import score_completions
from ..scoring.outcomes import Outcome
from ..scoring.reward import Reward
from ..scoring.run_rewards import isolate
from ..scoring.scored_reward import ScoredReward

# Rewards of right and wrong pay 1 for a right answer; anything below is partial credit.
_FULL_MARK = 1.0


def greedy_completions(
    model: Any, tokenizer: Any, prompts: Sequence[Any], **settings: Any
) -> list[Completion]:
    """Return the greedy completion of each prompt, in order; processes share the work.

    Args:
        prompts: lists of messages, or plain texts.
        settings: see `sampled_completions`.
    """
    groups = _completions(model, tokenizer, prompts, copies=1, sampling=GREEDY, **settings)
    return [completion for (completion,) in groups]


def sampled_completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    num: int,
    *,
    sampling: Mapping[str, Any],
    seed: int,
    **settings: Any,
) -> list[list[Completion]]:
    """Return `num` samples of each prompt, in order; processes share the prompts.

    The random numbers come from `seed`, and torch's generators are afterwards as they were before.

    Args:
        prompts: lists of messages, or plain texts.
        sampling: settings of `generate`, such as the temperature; `sampling_of(args)` returns those
            of a run.
        settings: `max_new_tokens`, the limit of a completion; `batch_size`, the number of prompts
            per process and call; `template_options`, keyword arguments of the chat template;
            `tool_use`, what the model may call, which makes completions lists of messages.
    """
    # Processes hold different prompts and need different random numbers.
    with own_random_numbers(seed + PartialState().process_index):
        return _completions(model, tokenizer, prompts, copies=num, sampling=sampling, **settings)


def _completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    copies: int,
    sampling: Mapping[str, Any],
    max_new_tokens: int,
    batch_size: int,
    template_options: dict[str, Any] | None = None,
    tool_use: ToolUse | None = None,
) -> list[list[Completion]]:
    """Return `copies` completions of each prompt, in order, on every process."""
    state = PartialState()
    # Every n-th prompt, so that sorted data gives no process all the long ones.
    mine = range(state.process_index, len(prompts), state.num_processes)
    shown = template_options
    if tool_use is not None:
        shown = tool_use.template_options(tokenizer, template_options)
    token_ids = prompt_token_ids([prompts[place] for place in mine], tokenizer, shown)
    # Prompts of similar length share a batch, which leaves little padding.
    by_length = sorted(range(len(mine)), key=lambda row: len(token_ids[row]))
    groups: list[tuple[int, list[Completion]]] = []
    with _answering(model, tokenizer, sampling, tool_use, template_options) as answer:
        for batch in in_step(model, parts(by_length, batch_size)):
            repeated = []
            # The copies of a prompt have to be neighbours: the model then reads the prompt once.
            for row in batch:
                repeated += [token_ids[row]] * copies
            completions = answer(repeated or [[tokenizer.eos_token_id]], max_new_tokens)
            for number, row in enumerate(batch):
                group = completions[number * copies : (number + 1) * copies]
                groups.append((mine[row], list(group)))
    return _in_order(gather_object(groups))


@contextmanager
def _answering(
    model: Any,
    tokenizer: Any,
    sampling: Mapping[str, Any],
    tool_use: ToolUse | None,
    template_options: dict[str, Any] | None,
) -> Iterator[Callable[[list[list[int]], int], Sequence[Completion]]]:
    """Yield a function from prompts in tokens and a limit to completions, in one turn or several.

    The prompts of processes with sharded weights have to be read in step, and calls of tools end
    at different times.
    """
    if tool_use is not None:
        with conversing(model, tokenizer, sampling, tool_use, template_options) as converse:
            yield converse
        return
    with continuing(model, tokenizer, sampling) as sample:

        def answer(prompts: list[list[int]], tokens: int) -> Sequence[Completion]:
            return tokenizer.batch_decode(sample(prompts, tokens), skip_special_tokens=True)

        yield answer


def _in_order(groups: Sequence[tuple[int, list[Completion]]]) -> list[list[Completion]]:
    """Return the completions of all prompts by the place of the prompt."""
    by_place = dict(groups)
    return [by_place[place] for place in sorted(by_place)]


@contextmanager
def judging(rewards: Sequence[Reward], args: GRPOConfig) -> Iterator[list[ScoredReward]]:
    """Let rewards score as in a trainer with these settings, in worker processes.

    The workers end with the block.
    """
    scored = list(map(ScoredReward, rewards))
    # `option`, because these settings may come in a configuration of TRL's own class.
    process = isolate(
        scored, workers=option(args, "reward_workers"), timeout=option(args, "reward_timeout")
    )
    try:
        yield scored
    finally:
        # Also after an error, or the worker processes would stay.
        if process is not None:
            process.close()


def judged(
    reward: ScoredReward,
    rows: Sequence[dict[str, Any]],
    completions: Sequence[Completion],
    *,
    completion_ids: Sequence[list[int]] | None = None,
    trainer_state: Any = None,
) -> list[Outcome]:
    """Return what the reward says of each completion.

    Args:
        rows: the `prompt` of each completion, with the columns that the reward reads.
        completion_ids: the tokens of each completion; without them the reward gets empty lists.
        trainer_state: the state of the trainer, for rewards that ask for it.
    """
    return score_completions(
        reward,
        [row["prompt"] for row in rows],
        completions,
        columns=columns_of(rows),
        completion_ids=completion_ids,
        trainer_state=trainer_state,
    )


def right_answers(
    reward: ScoredReward,
    rows: Sequence[dict[str, Any]],
    completions: Sequence[Completion],
    **more: Any,
) -> list[bool | None]:
    """Return whether each completion gets the reward's full mark, 1.0.

    A completion that the reward cannot judge counts as wrong. The result is None where the reward
    failed, because a failure says nothing about the completion.

    Args:
        more: see `judged`.
    """
    right: list[bool | None] = []
    for outcome in judged(reward, rows, completions, **more):
        if outcome.failure is not None:
            right.append(None)
        else:
            right.append(outcome.value is not None and outcome.value >= _FULL_MARK)
    return right
