"""Adapters of every kind: `generate`'s greedy tokens, by groups or announced to be not."""

from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from support.models import decoder
from transformers import GenerationConfig

from grpo_hf.rollout import generate
from grpo_hf.rollout.generate import GroupedSampling

MERGED, _, BESIDE = generate._WAYS
IDS = torch.tensor([[5, 6, 7, 8, 9]] * 3 + [[0, 0, 10, 8, 9]] * 3)
CONFIG = GenerationConfig(
    max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=[2, 50, 51, 52, 53]
)
# By what an option of LoRA does, or the kind of the adapter.
LORA: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
    "some layers": {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
    "some modules": {"exclude_modules": ["k_proj"]},
    "dora": {"use_dora": True},
    "its own bias": {"lora_bias": True},
    "biases of the base": {"bias": "all"},
    "dropout": {"lora_dropout": 0.5},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
    "replicated layers": {"layer_replication": [(0, 2), (1, 3)], "target_modules": ["q_proj"]},
    "invocation": {"target_modules": ["q_proj"], "alora_invocation_tokens": [8, 9]},
}
# What is left to transformers, with the reason.
LEFT = {
    "invocation": "PEFT looks for the adapter's `alora_invocation_tokens`",
    # transformers 5.23 makes a cache of as many layers as the base has.
    "replicated layers": "`generate` itself fails (IndexError",
}
OTHERS: dict[str, Any] = {
    "adalora": AdaLoraConfig(target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM"),
    "ia3": IA3Config(
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    ),
    "loha": LoHaConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "oft": OFTConfig(oft_block_size=8, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "vera": VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
}
SOFT: dict[str, Any] = {
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prompt encoder": PromptEncoderConfig(
        num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"
    ),
}


def outcome(model: Any) -> Any:
    try:
        return model.generate(
            input_ids=IDS, attention_mask=(IDS > 0).long(), generation_config=CONFIG
        ).tolist()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def way_of(model: Any) -> Any:
    """Return how a model was sampled, with the tokens of `generate`."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    model.eval()
    grouped = GroupedSampling()
    with torch.no_grad():
        expected = outcome(model)
        with grouped.serving(model):
            assert outcome(model) == expected
    return next(iter(grouped._ways.values()), None)


@pytest.mark.parametrize("option", LORA)
def test_greedy_tokens_are_those_of_generate_with_lora(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | LORA[option]
    way = way_of(get_peft_model(decoder("Qwen2"), LoraConfig(**settings)))
    if option in LEFT:
        assert way is None
        assert LEFT[option] in caplog.text
    else:
        assert way == MERGED
        assert not caplog.messages


@pytest.mark.parametrize("kind", OTHERS)
def test_greedy_tokens_are_those_of_generate_with(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert way_of(get_peft_model(decoder("Qwen2"), OTHERS[kind])) == MERGED
    assert not caplog.messages


@pytest.mark.parametrize("kind", SOFT)
def test_soft_prompts_are_left_to_transformers(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    assert way_of(get_peft_model(decoder("Qwen2"), SOFT[kind])) is None
    assert "the adapter is a soft prompt" in caplog.text


def test_a_merge_that_is_wrong_is_found_before_the_adapter_has_learned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new adapter is 0, and merging it changes nothing."""
    model = get_peft_model(decoder("Qwen2"), LoraConfig(r=4, target_modules=["q_proj"]))
    layers = [each for each in model.modules() if hasattr(each, "get_delta_weight")]
    for layer in layers:
        monkeypatch.setattr(layer, "get_delta_weight", lambda name, layer=layer: 0 * layer.weight)
    grouped = GroupedSampling()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad(), grouped.serving(model):
        outcome(model)
    assert list(grouped._ways.values()) == [BESIDE]
    assert "Rollouts do not fold the adapter into the weights" in caplog.text
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
