r"""Train the tiny checkpoint for three steps, on one process or several, and record the rollouts.

    accelerate launch ... replay_training.py \
        CHECKPOINT OUTPUT_FOLDER ROWS_PER_PROCESS [RECORDING] [steps|gae|norms]

The completions of every process and step go to `rollouts-RANK.json` in the output folder. RECORDING
is such a file from a run on one process. With it the completions are replayed, not sampled: rank r
gets its rows of every step. `steps` adds a step reward. `gae` takes the advantages from a critic.
`norms` trains the norms of the base as well.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from grpo_hf import GRPOConfig, GRPOTrainer, StepRewards, split_steps

STEPS = 3


def longer_is_better(completion_ids: list[list[int]], **_: Any) -> list[float]:
    # The first token tells completions of equal length apart.
    return [len(ids) + ids[0] / 1000 for ids in completion_ids]


def ends_cost(completions: list[str], **_: Any) -> list[StepRewards]:
    rewards = []
    for text in completions:
        ends = split_steps(text, by=" ")
        rewards.append(StepRewards(ends, [-float(end % 5) for end in ends]))
    return rewards


def main(
    checkpoint: str, output: Path, rows: int, recording: Path | None = None, *also: str
) -> None:
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    replayed = json.loads(recording.read_text()) if recording else None
    rollouts: list[dict[str, Any]] = []

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        if replayed is None:
            prompt_ids = trainer.processing_class(text=prompts)["input_ids"]
            completion_ids, _ = trainer._generate_single_turn(
                prompt_ids, None, {}, trainer.num_generations
            )
        else:
            step = replayed[len(rollouts)]
            first = trainer.accelerator.process_index * len(prompts)
            own_rows = slice(first, first + len(prompts))
            # The processes together need the prompts of the one process, in its order.
            assert step["prompts"][own_rows] == prompts, "other prompts than on one process"
            prompt_ids = step["prompt_ids"][own_rows]
            completion_ids = step["completion_ids"][own_rows]
        rollouts.append(
            {"prompts": prompts, "prompt_ids": prompt_ids, "completion_ids": completion_ids}
        )
        # Without log-probabilities of sampling, the trainer computes its own.
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    trainer = GRPOTrainer(
        model=checkpoint,
        reward_funcs=[longer_is_better, ends_cost] if "steps" in also else longer_is_better,
        args=GRPOConfig(
            output_dir=str(output),
            num_generations=4,
            per_device_train_batch_size=rows,
            max_completion_length=8,
            max_steps=STEPS,
            logging_steps=1,
            learning_rate=0.5,
            # Where gradients are near 0, an adaptive optimizer would turn rounding into steps.
            optim="sgd",
            advantage_estimator="gae" if "gae" in also else "group",
            report_to="none",
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": f"{n} apples and {n + 1} more: "} for n in range(16)]
        ),
        processing_class=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        rollout_func=rollout,
    )
    if "norms" in also:
        for name, weight in trainer.model.named_parameters():
            weight.requires_grad_(weight.requires_grad or "norm" in name)
    trainer.train()
    trainer.save_model()
    (output / f"rollouts-{trainer.accelerator.process_index}.json").write_text(json.dumps(rollouts))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *map(Path, sys.argv[4:5]), *sys.argv[5:])
