"""Run two iterations of algorithm 1 on the tiny checkpoint, on one process or several.

    accelerate launch ... iterative_training.py CHECKPOINT OUTPUT_FOLDER

At the end each process writes the adapters in its memory, those of the policy and of the reward
model, to `weights-RANK.safetensors`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from grpo_hf import GRPOConfig, load_reward, reward_settings
from grpo_hf.reward_models.fit import FitSettings
from grpo_hf.runs.iterative import Continued, IterativeGRPO

ITERATIONS = 2


@reward_settings(in_process=True)
def longer_is_better(completions: list[str], **_: Any) -> list[float]:
    return list(map(float, map(len, completions)))


def main(checkpoint: str, output: Path) -> None:
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    # All processes start with the same adapter.
    set_seed(0)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    loop = IterativeGRPO(
        get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")),
        AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
        GRPOConfig(
            output_dir=str(output),
            num_generations=4,
            per_device_train_batch_size=4,
            max_completion_length=8,
            max_steps=2,
            save_steps=1,
            learning_rate=2e-3,
            report_to="none",
            use_cpu=True,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        Dataset.from_list([{"prompt": f"{n} apples and {n + 1} more: "} for n in range(16)]),
        judge=load_reward(longer_is_better),
        continued=Continued(6, 4, fit=FitSettings(learning_rate=1e-3, batch_size=4)),
    )
    loop.run(ITERATIONS)
    weights = {}
    for name, weight in loop.model.state_dict().items():
        if "lora" in name:
            # safetensors accepts contiguous tensors only.
            weights[name] = weight.contiguous()
    rank = PartialState().process_index
    save_file(weights, output / f"weights-{rank}.safetensors")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
