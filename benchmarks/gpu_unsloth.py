"""Time training steps of one side for gpu_check.py: SIDE MODEL SIZE.

Every side trains the same prompts by `train()`, with completions of the same length. The last line
of the output is JSON: seconds of a step, and the peak of the device's memory in bytes. The module
imports nothing of TRL by itself, because Unsloth has to be imported before it.
"""

import json
import sys
import tempfile
import time
from itertools import pairwise
from statistics import median
from typing import Any

# The first step warms up.
STEPS = 4
LENGTHS = {"full": 128, "tiny": 6}


def steps_of(side: str, model: str, size: str) -> dict[str, float]:
    """Train with one side; return the seconds of a step and the peak of memory."""
    if side == "unsloth":
        import unsloth  # noqa: F401
    import torch
    from transformers import AutoTokenizer, TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *positional: Any, **named: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    trainer = _trainer(side, model, tokenizer, LENGTHS[size])
    trainer.add_callback(Clock())
    trainer.train()
    seconds = [later - earlier for earlier, later in pairwise(ends)]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"seconds": median(seconds), "peak": peak}


def _trainer(side: str, model: str, tokenizer: Any, length: int) -> Any:
    """Return the trainer of a side, with an adapter of the same rank on all matrices."""
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    import grpo_hf

    ours = side == "grpo-hf"
    given = {
        "output_dir": tempfile.mkdtemp(),
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "max_completion_length": length,
        "generation_kwargs": {"min_new_tokens": length},
        "max_steps": STEPS,
        "loss_type": "grpo",
        "beta": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
        "gradient_checkpointing": False,
    }
    config = (grpo_hf.GRPOConfig if ours else trl.GRPOConfig)(**given)
    rank: dict[str, Any] = {"r": 16, "lora_alpha": 32}
    adapter: dict[str, Any] = {"peft_config": LoraConfig(target_modules="all-linear", **rank)}
    if side == "unsloth":
        from unsloth import FastLanguageModel

        policy, _ = FastLanguageModel.from_pretrained(
            model_name=model, max_seq_length=2048, load_in_4bit=False
        )
        policy = FastLanguageModel.get_peft_model(policy, **rank, use_gradient_checkpointing=False)
        adapter = {}
    else:
        half = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=half)
    prompts = [{"prompt": f"{number} + {number} = " * 20} for number in range(32)]
    return (grpo_hf if ours else trl).GRPOTrainer(
        model=policy,
        reward_funcs=[_reward],
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        **adapter,
    )


def _reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion) % 7) for completion in completions]


if __name__ == "__main__":
    print(json.dumps(steps_of(*sys.argv[1:])))
