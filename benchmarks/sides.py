"""Make the trainers that are compared: the same model, adapter and settings, another class."""

import tempfile
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import grpo_hf
from grpo_hf.rewards.answer_format import answer_format
from grpo_hf.rewards.gsm8k import gsm8k

from .common import OURS, PEER, TRL, dtype

# The paper's objective (arXiv 2402.03300), which TRL has to be told.
OBJECTIVE = {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}

# Rank of the LoRA adapter.
RANK = 16

# Standard deviation of the adapter's B weights. They are 0 in a fresh adapter, and the policy would
# equal the reference.
ADAPTER_STD = 0.01


def trainer_class(side: str) -> type[trl.GRPOTrainer]:
    """Return the trainer class of a side."""
    if side == PEER:
        # Imported here, because only this side needs the optional package prefix-grouper.
        from .peer import PrefixGrouperTrainer

        return PrefixGrouperTrainer
    return {TRL: trl.GRPOTrainer, OURS: grpo_hf.GRPOTrainer}[side]


def make_trainer(
    side: str,
    model: str,
    rows: list[dict[str, Any]] | None = None,
    policy: Any = None,
    fresh: bool = False,
    **settings: Any,
) -> Any:
    """Return a trainer, by default with an adapter that differs from a fresh one.

    Args:
        side (`str`): "trl", "grpo-hf" or "prefix-grouper".
        model (`str`): a checkpoint folder, or a model on the Hub.
        rows: the dataset, for benchmarks that read one.
        policy: the model itself, where it is loaded already; `model` then has its tokenizer.
        fresh: whether the adapter stays as it is before training.
        settings: more settings of `GRPOConfig`.

    Raises:
        SystemExit: grpo-hf cannot pack the updates of this model.
    """
    config = grpo_hf.GRPOConfig if side == OURS else trl.GRPOConfig
    defaults = {
        "output_dir": tempfile.mkdtemp(prefix="benchmark-"),
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "max_steps": 1,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        # No mixed precision: on CUDA the weights themselves are in bfloat16.
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    if policy is None:
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=dtype())
    # All sides get the same adapter weights A, which are random.
    set_seed(0)
    trainer = trainer_class(side)(
        model=policy,
        reward_funcs=[gsm8k, answer_format],
        args=config(**(defaults | OBJECTIVE | settings)),
        train_dataset=Dataset.from_list(rows or [{"prompt": "1 + 1 = ", "answer": "2"}] * 2),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    if not fresh:
        set_adapter(trainer)
    # `train` sets it, and is never called here.
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    # The first call of `packs` examines the model. Here that is not part of a timed run.
    if side == OURS and not trainer.packs:
        raise SystemExit(
            "error: this model cannot take packed updates, so there is nothing to compare."
        )
    return trainer


def set_adapter(trainer: Any, std: float = ADAPTER_STD) -> None:
    """Draw the adapter's B weights, the same on every side; 0 makes the adapter a fresh one."""
    # Making a trainer may draw a different number of random numbers per class.
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=std)
