"""One copy of each prompt's states while decoding, and TRL's tokens all the same."""

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from support.models import decoder, lora
from support.sampling import PROMPTS, completions
from transformers import GenerationConfig

from grpo_hf import GRPOTrainer
from grpo_hf.rollout import shared_prefix_cache
from grpo_hf.rollout.generate import GroupedSampling

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


def test_masks_of_a_models_own_are_not_passed_by(caplog: pytest.LogCaptureFixture) -> None:
    """Doge's masks hide nothing in texts as short as those that are measured."""
    model = decoder("Doge", keep_window_size=16)
    ids = torch.arange(3, 27)[None].repeat(2, 1)
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0)
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "generation_config": settings}
    # Frozen and 0, as in a new model, it makes nothing of its masks until they hide tokens.
    model = get_peft_model(model, lora(target_modules=["q_proj"]))
    expected = model.generate(**call)
    with torch.no_grad(), GroupedSampling().serving(model):
        assert torch.equal(model.generate(**call), expected)
    assert "masks of its own" in caplog.text
