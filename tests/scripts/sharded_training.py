"""Train the tiny checkpoint under an engine that shards weights, with our class or TRL's.

    accelerate launch ... tests/scripts/sharded_training.py CHECKPOINT FOLDER ENGINE RUNS

ENGINE is a key of `support.sharding.ENGINES`. RUNS is JSON: by name, the settings of a run, where
`library` is "grpo_hf" or "trl", and the others are those of its configuration. Each run writes its
adapter, its log and `packed.json` into a folder of its name. Completions depend on the prompt, its
place in its group and the step alone, so all ways to run this train on the same.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from support.sharding import ENGINES, shards_on_a_cpu
from transformers import AutoTokenizer

import grpo_hf

COMMON: dict[str, Any] = {
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "max_completion_length": 8,
    "max_steps": 3,
    "logging_steps": 1,
    "learning_rate": 0.5,
    # Where gradients are near 0, an adaptive optimizer would turn rounding into steps.
    "optim": "sgd",
    "report_to": "none",
    "gradient_checkpointing": False,
    "save_strategy": "no",
    # What our defaults are, and TRL's are not.
    "bf16": False,
    "beta": 0.04,
    "loss_type": "grpo",
    "use_bias_correction_kl": False,
}


def longer_is_better(completion_ids: list[list[int]], **_: Any) -> list[float]:
    # The first token tells completions of equal length apart.
    return [len(ids) + ids[0] / 1000 for ids in completion_ids]


def written(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Be a rollout function: return completions that depend on prompt, place and step."""
    tokenizer = trainer.processing_class
    first = trainer.accelerator.process_index * len(prompts)
    completions = []
    for row, prompt in enumerate(prompts):
        place = (first + row) % trainer.num_generations
        draw = random.Random(f"{prompt}/{place}/{trainer.state.global_step}")
        tokens = [draw.randrange(5, len(tokenizer)) for _ in range(draw.randint(1, 7))]
        completions.append([*tokens, tokenizer.eos_token_id])
    ids = tokenizer(text=prompts)["input_ids"]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


def train(checkpoint: str, output: Path, settings: dict[str, Any]) -> None:
    library = {"trl": trl, "grpo_hf": grpo_hf}[settings.pop("library", "grpo_hf")]
    trainer = library.GRPOTrainer(
        model=checkpoint,
        reward_funcs=longer_is_better,
        args=library.GRPOConfig(output_dir=str(output), **COMMON | settings),
        train_dataset=Dataset.from_list(
            [{"prompt": f"{n} apples and {n + 1} more: "} for n in range(16)]
        ),
        processing_class=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        rollout_func=written,
    )
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))
        (output / "packed.json").write_text(json.dumps(bool(getattr(trainer, "packs", False))))
    trainer.accelerator.wait_for_everyone()


def main(checkpoint: str, folder: Path, engine: str, runs: dict[str, Any]) -> None:
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    if engine.startswith("zero"):
        import deepspeed  # noqa: F401
    with shards_on_a_cpu():
        for name, settings in runs.items():
            train(checkpoint, folder / name, ENGINES[engine] | settings)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
