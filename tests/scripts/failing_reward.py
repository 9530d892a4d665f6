"""Train on two processes; a reward that fails on the second one from step 2 on ends the run.

Both processes stop after a checkpoint.

    accelerate launch ... tests/scripts/failing_reward.py CHECKPOINT OUTPUT_FOLDER
"""

import os
import sys
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from grpo_hf import GRPOConfig, GRPOTrainer
from grpo_hf.errors import RewardFailuresError


def fails_here(completions, completion_ids, trainer_state):
    # The first process must learn of the failure, which happens on the other one only.
    if trainer_state.global_step == 2 and os.environ["RANK"] == "1":
        raise ConnectionError("the judge of the second process has gone")
    return [float(sum(ids) % 11) for ids in completion_ids]


def main(checkpoint: str, output: str) -> None:
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    trainer = GRPOTrainer(
        model=checkpoint,
        reward_funcs=fails_here,
        args=GRPOConfig(
            output_dir=output,
            num_generations=4,
            per_device_train_batch_size=4,
            max_completion_length=8,
            max_steps=5,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            reward_workers=1,
            max_reward_failures=0.25,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{n} apples: "} for n in range(16)]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    try:
        trainer.train()
    except RewardFailuresError as error:
        print(f"rank {trainer.accelerator.process_index} stopped: {error}", flush=True)
    # Threads of gloo may hold tensors of the last collective, and a process that ends the group
    # before they let go waits for them forever (pytorch/pytorch#56297).
    time.sleep(0.2)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
