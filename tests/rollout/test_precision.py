"""Rollouts in half precision on a CPU: TRL's own configuration trains as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from support.models import decoder, lora
from transformers import AutoTokenizer, GenerationConfig

from grpo_hf import GRPOTrainer, reward_settings
from grpo_hf.rollout import generate
from grpo_hf.rollout.generate import GroupedSampling


@reward_settings(in_process=True)
def lengths(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma3Text", "Lfm2"])
def test_trls_configuration_trains_on_a_cpu(
    architecture: str, adapter: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """It asks for bf16, which is autocast over float32 weights."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    layers = {"layer_types": ["conv", "full_attention", "conv"]} if architecture == "Lfm2" else {}
    model = decoder(
        architecture, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **layers
    )
    args = trl.GRPOConfig(
        use_cpu=True,
        output_dir=str(tmp_path / "run"),
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=8,
        max_steps=2,
        report_to="none",
    )
    assert args.bf16
    trainer = GRPOTrainer(
        model,
        lengths,
        args,
        Dataset.from_list([{"prompt": text} for text in ("1 + 2 = ", "Anna has", "3", "4 + ")]),
        processing_class=tokenizer,
        peft_config=lora() if adapter else None,
    )
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer.train()
    assert set(trainer.grouped._ways.values()) == {generate._WAYS[0]}
    moved = [
        name for name, weight in model.named_parameters() if not torch.equal(weights[name], weight)
    ]
    assert moved


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "GPTNeoX", "SmolLM3"])
def test_states_of_prompts_are_read_in_the_precision_of_autocast(architecture: str) -> None:
    """Rotated keys are float32 in the cache, and queries are bf16 in attention."""
    model = decoder(architecture, initializer_range=0.05)
    ids = torch.tensor([[5, 6, 7, 8]] * 2 + [[0, 0, 9, 10]] * 2)
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    call["generation_config"] = GenerationConfig(
        max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2
    )
    grouped = GroupedSampling()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model.generate(**call)
        with grouped.serving(model):
            found = model.generate(**call)
    assert set(grouped._ways.values()) == {generate._WAYS[0]}
    assert torch.equal(found, expected)  # no two tokens are as likely as each other here
