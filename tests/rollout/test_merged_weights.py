"""Weights with the adapter folded in: the model's own keep every bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.models import decoder, lora
from support.sampling import PROMPTS, completions

from grpo_hf import GRPOTrainer
from grpo_hf.rollout import generate
from grpo_hf.rollout import merged_weights as merging

MakeTrainer = Callable[..., GRPOTrainer]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_moves_no_bit(dtype: torch.dtype) -> None:
    model = get_peft_model(decoder("Llama").to(dtype), lora())
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        expected = model(ids).logits
        with merging.merged(model), model.disable_adapter():  # the weights hold it
            got = model(ids).logits
        again = model(ids).logits
    torch.testing.assert_close(
        got, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.1 * expected.std()
    )
    assert torch.equal(again, expected)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_layers_come_back_after_an_error() -> None:
    model = get_peft_model(decoder("Llama"), lora(target_modules=["q_proj"]))
    before = [vars(layer).get("forward") for layer in model.modules()]
    with pytest.raises(KeyboardInterrupt), merging.merged(model):
        assert [vars(layer).get("forward") for layer in model.modules()] != before
        raise KeyboardInterrupt
    assert [vars(layer).get("forward") for layer in model.modules()] == before


@pytest.mark.parametrize(
    "adapter",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
        {},
    ],
)
def test_what_cannot_be_merged_runs_beside_the_weights(
    adapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is more than a product of two matrices on a linear layer; and with too little memory
    nothing is merged.
    """
    model = get_peft_model(
        decoder("Llama"), LoraConfig(**({"r": 4, "target_modules": "all-linear"} | adapter))
    )
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    if not adapter:
        monkeypatch.setattr(merging, "free_memory", lambda device: 1000)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model(ids).logits
        with merging.merged(model):
            torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)


def test_dropout_is_off_while_sampling_from_merged_weights(
    sampler: Callable[..., GRPOTrainer],
) -> None:
    """The rollout's policy is the one that is trained, not a random thinning of it."""
    trainer = sampler(peft_config=lora(lora_dropout=0.5), generation_kwargs={"do_sample": False})
    assert completions(trainer, PROMPTS, grouped=True) == completions(
        trainer, PROMPTS, grouped=True
    )


@pytest.mark.parametrize("part", ["", "base_layer", "lora_A.default", "lora_dropout.default"])
def test_what_is_put_on_a_layer_between_rollouts_stays_in_force(part: str) -> None:
    """Hooks that steer a model may come with a callback, long after the sampling was measured."""
    model = get_peft_model(decoder("Llama"), lora(lora_dropout=0.1)).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    ids = torch.tensor([[5, 6, 7, 8]])
    handle = layer.get_submodule(part).register_forward_hook(lambda *_: _[-1] * -3 + 1)
    with torch.no_grad():
        expected = model(ids).logits
        with merging.merged(model):
            hooked = model(ids).logits
        handle.remove()
        forward = layer.forward
        layer.forward = lambda x: -2 * forward(x)
        negated = model(ids).logits
        with merging.merged(model):
            torch.testing.assert_close(model(ids).logits, negated)
    torch.testing.assert_close(hooked, expected)


def test_what_the_copies_take_is_known_and_said(
    sampler: Callable[..., GRPOTrainer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = sampler(generation_kwargs={"do_sample": False})
    adapted = trainer.model.get_base_model()
    weights = [layer.weight for layer in adapted.modules() if type(layer) is torch.nn.Linear]
    matrices = [weight for weight in weights if weight.shape[0] >= 16 and weight.shape[1] >= 16]
    expected = sum(weight.numel() * weight.element_size() for weight in matrices)
    taken = merging.copied_bytes(trainer.model)
    assert taken == expected
    completions(trainer, PROMPTS, grouped=True)
    assert not caplog.messages
    monkeypatch.setattr(generate, "free_memory", lambda device: 2 * taken)
    for _ in range(2):
        completions(trainer, PROMPTS, grouped=True)
    assert len(caplog.messages) == 1
    assert "copies of the weights with the adapter in them take 0.0 GiB" in caplog.text
    # More than half of what is free: none are made.
    monkeypatch.setattr(merging, "free_memory", lambda device: taken)
    assert merging.copied_bytes(trainer.model) == 0
