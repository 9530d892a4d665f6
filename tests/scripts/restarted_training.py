"""Train to the end, or go on with what a killed process has left: one command for both.

accelerate launch ... tests/scripts/restarted_training.py CHECKPOINT OUTPUT_FOLDER
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from grpo_hf import GRPOConfig, GRPOTrainer
from grpo_hf.durability.whole_checkpoints import find


def odd_lengths(completion_ids, **_):
    return [float(sum(ids) % 7) for ids in completion_ids]


def main(checkpoint: str, output: str) -> None:
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    trainer = GRPOTrainer(
        model=checkpoint,
        reward_funcs=odd_lengths,
        args=GRPOConfig(
            output_dir=output,
            num_generations=4,
            per_device_train_batch_size=4,
            # A checkpoint falls within a rollout, and into three epochs.
            num_iterations=2,
            max_completion_length=8,
            max_steps=24,
            logging_steps=1,
            save_steps=3,
            save_total_limit=2,
            reward_workers=1,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{n} apples: "} for n in range(5)]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    # With weights and the last checkpoint there, a further start finds the run finished.
    assert find(Path(output)).newest is not None
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
