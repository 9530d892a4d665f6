"""Train with phases that last, and say in a file which one it is, for a test that sends signals.

    accelerate launch ... tests/scripts/leaving_training.py CHECKPOINT OUTPUT_FOLDER [RANK]

The first process writes its phase and step to `OUTPUT_FOLDER.phase`; that with RANK fails.
"""

import sys
import time
from pathlib import Path
from typing import Any

from grpo_hf.runs.program import exit_on_error, quiet

SECONDS = 0.4
# What of TRL's trainer begins a phase.
PHASES = {
    "_generate_single_turn": "rollout",
    "_calculate_rewards": "scoring",
    "_compute_loss": "update",
    "_save_rng_state": "save",
}


def slow_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    time.sleep(SECONDS / 4)
    return [float(sum(ids) % 7) for ids in completion_ids]


def out_of_luck(*_: Any, **named: Any) -> Any:
    raise ValueError("out of luck")


def main(checkpoint: str, output: str, fails: str = "") -> None:
    quiet()
    with exit_on_error():
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoTokenizer

        from grpo_hf import GRPOConfig, GRPOTrainer

        # The processes share the cores of one machine.
        torch.set_num_threads(1)
        trainer = GRPOTrainer(
            model=checkpoint,
            reward_funcs=slow_reward,
            args=GRPOConfig(
                output_dir=output,
                num_generations=4,
                per_device_train_batch_size=4,
                max_completion_length=8,
                max_steps=6,
                logging_steps=1,
                save_steps=3,
                save_total_limit=2,
                reward_workers=1,
                learning_rate=1e-2,
                optim="sgd",
                report_to="none",
                use_cpu=True,
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list([{"prompt": f"{n} apples: "} for n in range(64)]),
            processing_class=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        for name, phase in PHASES.items():
            setattr(trainer, name, lasting(trainer, getattr(trainer, name), phase, output))
        if fails == str(trainer.accelerator.process_index):
            trainer.compute_loss = out_of_luck
        trainer.train()
        trainer.save_model()
        trainer.accelerator.end_training()


def lasting(trainer: Any, method: Any, phase: str, output: str) -> Any:
    """Return a method that says its phase and takes a while."""

    def method_with_phase(*positional: Any, **named: Any) -> Any:
        if trainer.accelerator.is_main_process:
            step = trainer.state.global_step
            Path(f"{output}.phase").write_text(f"{phase} {step}")
            time.sleep(SECONDS)
        return method(*positional, **named)

    return method_with_phase


if __name__ == "__main__":
    main(*sys.argv[1:])
