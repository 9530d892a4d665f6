"""Train on two processes; from step 3 on the loss of the second one is NaN.

Both processes stop before that step, or leave it out.

    accelerate launch ... tests/scripts/broken_loss.py CHECKPOINT OUTPUT_FOLDER stop|skip
"""

import hashlib
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoTokenizer

from grpo_hf import GRPOConfig, GRPOTrainer
from grpo_hf.errors import NotFiniteError


def longer_is_better(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(ids) % 11) for ids in completion_ids]


class Broken(GRPOTrainer):
    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        # The first process must learn of it, because both have to answer alike.
        here = self.accelerator.process_index == 1 and self.state.global_step == 2
        return loss * float("nan") if here else loss


def main(checkpoint: str, output: str, answer: str) -> None:
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    trainer = Broken(
        model=checkpoint,
        reward_funcs=longer_is_better,
        args=GRPOConfig(
            output_dir=output,
            num_generations=4,
            per_device_train_batch_size=4,
            max_completion_length=8,
            max_steps=4,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            reward_workers=0,
            non_finite=answer,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{n} apples: "} for n in range(16)]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    words = "trained"
    try:
        trainer.train()
    except NotFiniteError as error:
        words = f"stopped: {error}"
    digest = hashlib.blake2b(digest_size=4)
    for weight in trainer.accelerator.unwrap_model(trainer.model).parameters():
        digest.update(weight.detach().numpy().tobytes())
    rank, step = trainer.accelerator.process_index, trainer.state.global_step
    print(f"rank {rank} step {step} weights {digest.hexdigest()} {words}", flush=True)
    # Threads of gloo may hold tensors of the last collective, and a process that ends the group
    # before they let go waits for them forever (pytorch/pytorch#56297).
    time.sleep(0.2)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
