"""Train with dynamic sampling on two processes, where the second has groups without signal.

accelerate launch ... tests/scripts/dynamic_sampling.py CHECKPOINT OUTPUT_FOLDER DYNAMIC(true|false)
"""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from grpo_hf import GRPOConfig, GRPOTrainer, reward_settings


def main(checkpoint: str, output: Path, dynamic: bool) -> None:
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    calls = {"in_step": 0, "step": -1}

    @reward_settings(in_process=True, batched=True)
    def reward(completion_ids: list[list[int]], trainer_state: Any, **_: Any) -> list[float]:
        is_first_call = calls["step"] != trainer_state.global_step
        calls.update(step=trainer_state.global_step)
        # The first call of a step is for the planned groups; groups that are drawn later have a
        # signal.
        if is_first_call and trainer.accelerator.process_index == 1:
            return [0.3] * len(completion_ids)
        return [index + len(ids) for index, ids in enumerate(completion_ids)]

    trainer = GRPOTrainer(
        model=checkpoint,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(output),
            num_generations=4,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_completion_length=8,
            max_steps=3,
            logging_steps=1,
            beta=0.0,
            learning_rate=2e-3,
            report_to="none",
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            dynamic_sampling=dynamic,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{n} apples: "} for n in range(16)]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "true")
