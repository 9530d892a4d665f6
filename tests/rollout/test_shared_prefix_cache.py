"""One copy of each prompt's states while decoding, and TRL's tokens all the same."""

from collections.abc import Callable

import pytest
from support.sampling import PROMPTS, completions

from grpo_hf import GRPOTrainer
from grpo_hf.rollout import shared_prefix_cache

MakeTrainer = Callable[..., GRPOTrainer]


@pytest.mark.parametrize(
    ("architecture", "served"), [("Llama", True), ("GPT2", True), ("Mistral", False)]
)
def test_prompts_are_kept_once_where_attention_sees_all_of_them(
    sampler: Callable[..., GRPOTrainer],
    architecture: str,
    served: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []
    take = shared_prefix_cache.SharedPrefixCache.take
    monkeypatch.setattr(
        shared_prefix_cache.SharedPrefixCache,
        "take",
        lambda *arguments: taken.append(take(*arguments)) or taken[-1],
    )
    completions(sampler(architecture), PROMPTS, grouped=True)
    # Once while it was measured, and once for the rollout.
    assert taken == [served, served]


def test_prompts_of_one_row_each_and_of_one_token(sampler: Callable[..., GRPOTrainer]) -> None:
    trainer = sampler(generation_kwargs={"do_sample": False})
    for prompts in ([[5], [6, 7, 8], [9, 9]], [[5]]):
        assert completions(trainer, prompts, grouped=True) == completions(
            trainer, prompts, grouped=False
        )
