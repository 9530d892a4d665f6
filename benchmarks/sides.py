"""The trainers that are compared: the same model, adapter and settings; only the class differs."""

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

from .common import OURS, PEER, TRL

# The paper's objective (arXiv 2402.03300), which TRL has to be told.
OBJECTIVE = {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}
RANK = 16


def dtype() -> torch.dtype:
    """float32 on a CPU, bfloat16 on an accelerator."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def trainer_class(side: str) -> type[trl.GRPOTrainer]:
    """The trainer of a side."""
    if side == PEER:
        from .peer import PrefixGrouperTrainer  # the one that needs another package

        return PrefixGrouperTrainer
    return {TRL: trl.GRPOTrainer, OURS: grpo_hf.GRPOTrainer}[side]


def make_trainer(
    side: str, model: str, rows: list[dict[str, Any]] | None = None, **settings: Any
) -> Any:
    """A trainer, ready for work, with an adapter whose B is not 0, so that policy and reference differ.

    Args:
        side (`str`): "trl", "grpo-hf" or "prefix-grouper".
        model (`str`): a checkpoint folder, or a model on the Hub.
        rows: the dataset, for benchmarks that read one.
        settings: of `GRPOConfig`.
    """
    config = grpo_hf.GRPOConfig if side == OURS else trl.GRPOConfig
    defaults = {
        "output_dir": tempfile.mkdtemp(prefix="benchmark-"),
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "max_steps": 1,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,  # the weights themselves are, on an accelerator
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    set_seed(0)
    trainer = trainer_class(side)(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=dtype()),
        reward_funcs=[gsm8k, answer_format],
        args=config(**(defaults | OBJECTIVE | settings)),
        train_dataset=Dataset.from_list(rows or [{"prompt": "1 + 1 = ", "answer": "2"}] * 2),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.01)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    if (
        side == OURS and not trainer.packs
    ):  # asked here, so that the answer is no part of what is timed
        raise SystemExit(
            "error: this model cannot take packed updates, so there is nothing to compare."
        )
    return trainer
