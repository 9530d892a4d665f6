"""Rollouts by groups: TRL's tokens when greedy, the model's distribution when sampled, the
weights as they were.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from support.models import decoder
from support.sampling import PROMPTS, completions
from transformers import GenerationConfig

from grpo_hf import GRPOTrainer
from grpo_hf.rollout.generate import GroupedSampling

MakeTrainer = Callable[..., GRPOTrainer]


@pytest.mark.parametrize(
    "architecture", ["Llama", "Mistral", "Gemma3Text", "GPT2", "SmolLM3", "Lfm2"]
)
def test_greedy_tokens_are_trls(sampler: Callable[..., GRPOTrainer], architecture: str) -> None:
    """Ragged prompts, caches with and without windows, and rows that end at different tokens."""
    trainer = sampler(architecture, generation_kwargs={"do_sample": False})
    first = completions(trainer, PROMPTS, grouped=False)
    # Rows now end early, and not together.
    trainer.generation_config.eos_token_id = [2, first[0][3], first[4][-2]]
    trainer.eos_token_ids = trainer.generation_config.eos_token_id
    expected = completions(trainer, PROMPTS, grouped=False)
    assert completions(trainer, PROMPTS, grouped=True) == expected
    assert len({len(row) for row in expected}) > 1


@pytest.mark.long
def test_samples_have_the_models_distribution(sampler: Callable[..., GRPOTrainer]) -> None:
    """Pearson's chi-squared over pairs of tokens, each pair's probability from a forward pass;
    99.9% quantile.
    """
    rows, vocabulary = 40_000, 6
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "eos_token_id": None,
        "initializer_range": 0.1,
    }
    trainer = sampler(model=decoder("Llama", **settings), max_completion_length=2, temperature=0.8)
    trainer.generation_config.eos_token_id, trainer.eos_token_ids = None, [-1]
    prompt = [3, 5]
    torch.manual_seed(0)
    drawn = torch.tensor(completions(trainer, [prompt] * rows, grouped=True))
    counts = torch.bincount(
        drawn[:, 0] * vocabulary + drawn[:, 1], minlength=vocabulary**2
    ).double()
    with torch.no_grad():
        ids = torch.tensor([[*prompt, first] for first in range(vocabulary)])
        log_p = (trainer.model(input_ids=ids).logits.double() / 0.8).log_softmax(-1)
    expected = rows * (log_p[:, 1].diagonal()[:, None] + log_p[:, 2]).exp().flatten()
    assert expected.min() > 5  # the test's condition
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 66.6  # chi-squared with 35 degrees of freedom


def test_filters_of_the_distribution_hold(sampler: Callable[..., GRPOTrainer]) -> None:
    trainer = sampler(top_k=3, temperature=1.5)
    drawn = completions(trainer, [[5, 6, 7]] * 200, grouped=True)
    with torch.no_grad():
        allowed = (
            trainer.model(input_ids=torch.tensor([[5, 6, 7]]))
            .logits[0, -1]
            .topk(3)
            .indices.tolist()
        )
    assert {row[0] for row in drawn} == set(allowed)


@pytest.mark.parametrize("architecture", ["Mamba", "Mpt"])
def test_models_without_an_ordinary_cache_generate_as_ever(
    sampler: Callable[..., GRPOTrainer], architecture: str
) -> None:
    sizes: dict[str, Any] = (
        {"state_size": 4}
        if architecture == "Mamba"
        else {"d_model": 32, "n_heads": 4, "n_layers": 2}
    )
    model = decoder(architecture, **sizes)
    trainer = sampler(
        model=model, peft_config=None, generation_kwargs={"do_sample": False}, beta=0.0
    )
    prompts = [[5, 6, 7]] * 4
    assert completions(trainer, prompts, grouped=True) == completions(
        trainer, prompts, grouped=False
    )


@pytest.mark.parametrize(
    "own",
    [{"cache_implementation": "static"}, {"num_beams": 2}, {"encoder_repetition_penalty": 2.0}],
)
def test_the_models_own_settings_count(
    sampler: Callable[..., GRPOTrainer], own: dict[str, Any]
) -> None:
    trainer = sampler(generation_kwargs={"do_sample": False})
    trainer.model.get_base_model().generation_config.update(**own)
    assert completions(trainer, PROMPTS, grouped=True) == completions(
        trainer, PROMPTS, grouped=False
    )


def test_soft_prompts_are_part_of_the_policy() -> None:
    """PEFT puts them in while preparing the inputs of each step, which another loop would leave
    out.
    """
    model = get_peft_model(
        decoder("Llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    ids = torch.tensor([[5, 6, 7]] * 2)
    settings = {
        "generation_config": GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0)
    }
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **settings}
    with torch.no_grad():
        expected = model.generate(**call)
        with GroupedSampling().serving(model):
            assert torch.equal(model.generate(**call), expected)


def test_a_generate_that_was_replaced_is_left_alone(
    sampler: Callable[..., GRPOTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    """Its own processors may keep something for each row, and are not those of the call."""
    trainer = sampler()
    model = trainer.accelerator.unwrap_model(trainer.model)
    calls = []

    def generate(**named: Any) -> Any:
        calls.append(named)
        return type(model).generate(model, **named)

    model.generate = generate
    completions(trainer, PROMPTS, grouped=True)
    assert len(calls) == 1 and "custom_generate" not in calls[0]
    assert "`generate` was replaced on the model" in caplog.text


def test_generate_is_as_it_was_afterwards() -> None:
    model = decoder("Llama")
    with pytest.raises(ValueError), GroupedSampling().serving(model):
        raise ValueError
    assert "generate" not in vars(model)
