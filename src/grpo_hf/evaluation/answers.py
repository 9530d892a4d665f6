"""A model's answers to prompts, and whether they are right.

Completions are greedy or sampled, and a reward says which of them are right. `statistics` makes
accuracies, pass@k and maj@k of that.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
from ..rollout.sampling import (
    GREEDY,
    Continues,
    Sample,
    Written,
    continuing,
    end_token_ids,
    is_cut,
)
from ..scoring.judging import score_completions
from ..scoring.outcomes import Outcome
from ..scoring.reward import Reward
from ..scoring.run_rewards import isolate
from ..scoring.scored_reward import ScoredReward
from .part_marks import is_full_mark

# Batches of two seeds have different random numbers, in sets of fewer prompts than this.
_SEEDS = 1_000_003


def greedy_completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> list[Written]:
    """Return the greedy completion of each prompt, in order; processes share the work.

    Args:
        prompts: lists of messages, or plain texts.
        progress: is told after each batch how many more prompts this process has completed.
        settings: see `sampled_completions`.
    """
    groups = completed_batches(model, tokenizer, prompts, copies=1, sampling=GREEDY, **settings)
    return [completion for (completion,) in _gathered(groups, progress)]


def greedy_of_run(
    model: Any, tokenizer: Any, prompts: Sequence[Any], args: GRPOConfig, **settings: Any
) -> list[Completion]:
    """Return the greedy completion of each prompt, with the limit and the template of a run.

    Args:
        prompts: lists of messages, or plain texts.
        args: settings of the run.
        settings: of `sampled_completions`, in place of the run's.
    """
    of_run = {
        "max_new_tokens": args.max_completion_length,
        "batch_size": args.per_device_train_batch_size,
        "template_options": args.chat_template_kwargs,
    }
    written = greedy_completions(model, tokenizer, prompts, **(of_run | settings))
    return [each.completion for each in written]


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
    groups = completed_batches(
        model, tokenizer, prompts, copies=num, sampling=sampling, seed=seed, **settings
    )
    found = []
    for group in _gathered(groups):
        found.append([written.completion for written in group])
    return found


def completed_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    copies: int,
    sampling: Mapping[str, Any],
    max_new_tokens: int,
    batch_size: int,
    seed: int = 0,
    template_options: dict[str, Any] | None = None,
    tool_use: ToolUse | None = None,
    continues: Continues = continuing,
    done: Collection[int] = (),
) -> Iterator[dict[int, list[Written]]]:
    """Yield `copies` completions of this process's prompts, batch by batch, by place of the prompt.

    A batch has its own random numbers, so that what it samples does not depend on the batches
    before it.

    Args:
        continues: writes tokens after others, as `continuing` does.
        done: places of prompts that are completed already. A batch is left out if all of it is.
    """
    mine = own_places(len(prompts))
    shown = template_options
    if tool_use is not None:
        shown = tool_use.template_options(tokenizer, template_options)
    token_ids = prompt_token_ids([prompts[place] for place in mine], tokenizer, shown)
    # Prompts of similar length share a batch, which leaves little padding.
    by_length = sorted(range(len(mine)), key=lambda row: len(token_ids[row]))
    left = []
    for batch in parts(by_length, batch_size):
        if not all(mine[row] in done for row in batch):
            left.append(batch)
    writing = continues(model, tokenizer, sampling)
    ends = end_token_ids(model, tokenizer)

    def cut(tokens: Sequence[int], limit: int) -> bool:
        return is_cut(tokens, ends, limit, sampling)

    with _answering(writing, model, tokenizer, tool_use, template_options, cut) as answer:
        for batch in in_step(model, left):
            repeated = []
            # The copies of a prompt have to be neighbours: the model then reads the prompt once.
            for row in batch:
                repeated += [token_ids[row]] * copies
            # The place is another in each process, and so are its random numbers.
            with own_random_numbers(seed * _SEEDS + (mine[batch[0]] if batch else 0)):
                completions = answer(repeated or [[tokenizer.eos_token_id]], max_new_tokens)
            groups = {}
            for number, row in enumerate(batch):
                groups[mine[row]] = list(completions[number * copies : (number + 1) * copies])
            yield groups


def own_places(count: int) -> range:
    """Return the places of the prompts that this process answers, of `count` in all."""
    state = PartialState()
    # Every n-th, so that sorted data gives no process all the long ones.
    return range(state.process_index, count, state.num_processes)


@contextmanager
def _answering(
    writing: AbstractContextManager[Sample],
    model: Any,
    tokenizer: Any,
    tool_use: ToolUse | None,
    template_options: dict[str, Any] | None,
    cut: Callable[[Sequence[int], int], bool],
) -> Iterator[Callable[[list[list[int]], int], Sequence[Written]]]:
    """Yield a function from prompts in tokens and a limit to completions, in one turn or several.

    The prompts of processes with sharded weights have to be read in step, and calls of tools end
    at different times.
    """
    with writing as sample:

        def answer(prompts: list[list[int]], tokens: int) -> Sequence[Written]:
            rows = sample(prompts, tokens)
            texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
            return [Written(text, cut(row, tokens)) for text, row in zip(texts, rows, strict=True)]

        if tool_use is None:
            yield answer
        else:
            yield conversing(sample, model, tokenizer, tool_use, template_options, is_cut=cut)


def _gathered(
    batches: Iterable[dict[int, list[Written]]],
    progress: Callable[[int], None] | None = None,
) -> list[list[Written]]:
    """Return the completions of all processes' prompts, by the place of the prompt."""
    mine: list[tuple[int, list[Written]]] = []
    for groups in batches:
        mine += groups.items()
        if progress is not None:
            progress(len(groups))
    by_place = dict(gather_object(mine))
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
    return list(map(is_right, judged(reward, rows, completions, **more)))


def is_right(outcome: Outcome) -> bool | None:
    """Return whether an outcome is the full mark; None where the reward failed."""
    if outcome.failure is not None:
        return None
    return is_full_mark(outcome.value)
