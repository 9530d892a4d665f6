"""Train the tiny checkpoint for three steps, on however many processes launch this, and leave a record.

    accelerate launch ... replay_training.py CHECKPOINT OUTPUT_FOLDER ROWS_PER_PROCESS [RECORDING] [steps|gae]

The completions of every process and step go to `rollouts-RANK.json` in the output folder. With a RECORDING (such a file
of a run on one process) the completions are not sampled but replayed: rank r gets its rows of every step. With `steps`
a step reward is added, and with `gae` advantages are a critic's.
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
    return [len(ids) + ids[0] / 1000 for ids in completion_ids]


def ends_cost(completions: list[str], **_: Any) -> list[StepRewards]:
    steps = [split_steps(text, by=" ") for text in completions]
    return [StepRewards(ends, [-float(end % 5) for end in ends]) for ends in steps]


def main(
    checkpoint: str, output: Path, rows: int, recording: Path | None = None, *also: str
) -> None:
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
            step, first = replayed[len(rollouts)], trainer.accelerator.process_index * len(prompts)
            mine = slice(first, first + len(prompts))
            assert step["prompts"][mine] == prompts, (
                "the processes do not share the prompts as one process has them"
            )
            prompt_ids, completion_ids = step["prompt_ids"][mine], step["completion_ids"][mine]
        rollouts.append(
            {"prompts": prompts, "prompt_ids": prompt_ids, "completion_ids": completion_ids}
        )
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
            optim="sgd",  # an adaptive optimizer turns rounding into steps where gradients are near 0
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
    trainer.train()
    trainer.save_model()
    (output / f"rollouts-{trainer.accelerator.process_index}.json").write_text(json.dumps(rollouts))
    trainer.end()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *map(Path, sys.argv[4:5]), *sys.argv[5:])
