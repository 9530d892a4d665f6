"""Rollouts of a trainer as its stages see them, without reaching into the trainer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from grpo_hf import GRPOTrainer
from grpo_hf.algorithm import token_advantages
from grpo_hf.scoring import step_scores
from grpo_hf.scoring.scorer import Scores


class Rollout(NamedTuple):
    """A rollout with the advantages that it is trained on, and what its rewards said."""

    batch: dict[str, Any]
    scores: Scores


@contextmanager
def watched_rollouts() -> Iterator[list[Rollout]]:
    """Collect the rollouts for training that are made inside the block, in order."""
    seen: list[Rollout] = []
    scored: list[Scores] = []
    of_rollout = step_scores.of_rollout
    credit_tokens = token_advantages.credit_tokens

    def watched_steps(scores: Scores, *others: Any) -> Any:
        scored.append(scores)
        return of_rollout(scores, *others)

    def watched_credit(batch: Any, *others: Any) -> Any:
        credit = credit_tokens(batch, *others)
        seen.append(Rollout({**batch, "advantages": credit.advantages}, scored[-1]))
        return credit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_scores, "of_rollout", watched_steps)
        patch.setattr(token_advantages, "credit_tokens", watched_credit)
        yield seen


def rollout_of(trainer: GRPOTrainer, count: int = 8) -> Rollout:
    """Return a rollout for training: 4 completions of each of the first prompts."""
    trainer.model.train()
    rows = [trainer.train_dataset[index // 4] for index in range(count)]
    with watched_rollouts() as seen:
        trainer._roll_out(rows)
    return seen[-1]
