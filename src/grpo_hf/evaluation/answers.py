"""Did the model get better: greedy answers of base and adapter to the same held-out prompts, with 95% intervals.

Of sampled answers: how often one of k is right, and how often the one that most of k agree on.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ..config import GRPOConfig, option
from ..data.batching import parts
from ..data.completions import columns_of
from ..data.prompts import prompt_token_ids
from ..models.random_state import own_random_numbers
from ..rollout.sampling import GREEDY, continuing
from ..scoring.judging import score_texts
from ..scoring.outcomes import Outcome
from ..scoring.reward import Reward
from ..scoring.scored_reward import ScoredReward
from ..scoring.scorer import isolate


def greedy_completions(
    model: Any, tokenizer: Any, prompts: Sequence[Any], **settings: Any
) -> list[str]:
    """The model's most likely completion of each prompt, in order; processes share the prompts among them.

    Args:
        prompts: lists of messages, or plain texts.
        settings: see `sampled_completions`.
    """
    return [
        texts[0]
        for texts in _completions(model, tokenizer, prompts, copies=1, sampling=GREEDY, **settings)
    ]


def sampled_completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    num: int,
    *,
    sampling: Mapping[str, Any],
    seed: int,
    **settings: Any,
) -> list[list[str]]:
    """`num` samples of each prompt, in order; processes share the prompts among them.

    Random numbers are those of `seed`; torch's generators are afterwards what they were.

    Args:
        prompts: lists of messages, or plain texts.
        sampling: settings of `generate`, such as the temperature; `sampling_of(args)` has those of a run.
        settings: `max_new_tokens`, at most per completion; `batch_size`, prompts per process and call;
            `template_options`, keyword arguments of the chat template.
    """
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
) -> list[list[str]]:
    state = PartialState()
    mine = list(range(len(prompts)))[state.process_index :: state.num_processes]
    token_ids = prompt_token_ids([prompts[index] for index in mine], tokenizer, template_options)
    by_length = sorted(range(len(mine)), key=lambda i: len(token_ids[i]))
    texts: list[tuple[int, list[str]]] = []
    with continuing(model, tokenizer, sampling) as sample:
        for rows in parts(by_length, batch_size):
            written = sample([token_ids[i] for i in rows for _ in range(copies)], max_new_tokens)
            answers = tokenizer.batch_decode(written, skip_special_tokens=True)
            texts += [(mine[i], answers[k * copies : (k + 1) * copies]) for k, i in enumerate(rows)]
    return [of_prompt for _, of_prompt in sorted(gather_object(texts), key=lambda one: one[0])]


@contextmanager
def judging(rewards: Sequence[Reward], args: GRPOConfig) -> Iterator[list[ScoredReward]]:
    """Rewards that score as in a trainer with these settings, in a process of their own, while the block lasts."""
    scored = [ScoredReward(reward) for reward in rewards]
    process = isolate(
        scored, workers=option(args, "reward_workers"), timeout=option(args, "reward_timeout")
    )
    try:
        yield scored
    finally:
        if process is not None:
            process.close()


def judged(
    reward: ScoredReward,
    rows: Sequence[dict[str, Any]],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[list[int]] | None = None,
    trainer_state: Any = None,
) -> list[Outcome]:
    """Return what a reward says of each completion.

    Args:
        rows: of the data, with `prompt` and the columns that the reward reads.
    """
    return score_texts(
        reward,
        [row["prompt"] for row in rows],
        completions,
        columns=columns_of(rows),
        completion_ids=completion_ids,
        trainer_state=trainer_state,
    )


def right_answers(
    reward: ScoredReward, rows: Sequence[dict[str, Any]], completions: Sequence[str], **more: Any
) -> list[bool | None]:
    """Return whether each completion gets the reward's full mark, 1.0.

    What the reward cannot judge counts as wrong. None where the reward failed, which says nothing
    about the completion.

    Args:
        more: see `judged`.
    """
    right: list[bool | None] = []
    for outcome in judged(reward, rows, completions, **more):
        if outcome.failure is not None:
            right.append(None)
        else:
            right.append(outcome.value is not None and outcome.value >= 1.0)
    return right
