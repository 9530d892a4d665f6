"""Train a little, with a fault that is asked for: `support.faults` says which, and what came of it.

    python tests/scripts/faulty_training.py CHECKPOINT OUTPUT_FOLDER '{"loss_of_steps": [3]}'

What may be asked for, beside `resume` and the `settings` of the run: `reward`, one of REWARDS;
`completion`, the token ids of row 3 of each rollout; `loss_of_steps`, where the loss is NaN;
`broken_base`; `rows`, how many; `harm`, one of HARMS, which is done after step 2; `shared_memory`,
false for a /dev/shm that is read-only; `sandbox`, false for a machine without one.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from support.mounts import mount_for_this_process
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from grpo_hf import GRPOConfig, GRPOTrainer
from grpo_hf.durability import whole_checkpoints
from grpo_hf.runs.program import exit_on_error, quiet
from grpo_hf.scoring import sandbox_tiers

SETTINGS: dict[str, Any] = {
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "max_steps": 4,
    "logging_steps": 1,
    "save_steps": 1,
    "reward_workers": 0,
    "learning_rate": 1e-2,
    "report_to": "none",
    "use_cpu": True,
    "gradient_checkpointing": False,
}


def odd(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


def huge(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [1e20 * (row % 3) for row, _ in enumerate(completion_ids)]


def unjudged(completion_ids: list[list[int]], **_: Any) -> list[None]:
    return [None for _ in completion_ids]


def nothing(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [0.0 for _ in completion_ids]


REWARDS: dict[str, Any] = {
    "odd": odd,
    "huge": huge,
    "unjudged": unjudged,
    "nothing": nothing,
    "python_tests": "python_tests",
}


def fill(run: Path) -> None:
    with (run.parent / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(1024))
        except OSError:
            pass


def forbid_writing(run: Path) -> None:
    # The run holds its lock open, and a disk with such files is not made read-only.
    subprocess.run(["mount", "--bind", str(run), str(run)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(run)], check=True)


HARMS: dict[str, Callable[[Path], Any]] = {
    "full": fill,
    "read-only": forbid_writing,
    "vanished": rmtree,
}


class Vandal(TrainerCallback):
    """Do something to the folder of the run after its second step."""

    def __init__(self, harm: Callable[[Path], Any]) -> None:
        self.harm = harm

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            self.harm(Path(args.output_dir))


class Broken(GRPOTrainer):
    """A trainer whose loss is NaN in some steps, counted from 1."""

    steps: tuple[int, ...] = ()

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)
        return loss * float("nan") if self.state.global_step + 1 in self.steps else loss


def made_trainer(checkpoint: str, output: str, asked: dict[str, Any]) -> GRPOTrainer:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    if asked.get("broken_base"):
        model.model.layers[0].mlp.up_proj.weight.data[3, 4] = float("nan")
    completion = asked.get("completion")

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        prompt_ids = trainer.processing_class(text=prompts)["input_ids"]
        completions = [[5, 6] for _ in prompts]
        completions[3] = completion
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}

    rows = [{"prompt": f"{n} apples: "} for n in range(asked.get("rows", 16))]
    trainer = Broken(
        model=model,
        reward_funcs=REWARDS[asked.get("reward", "odd")],
        args=GRPOConfig(output_dir=output, **(SETTINGS | asked.get("settings", {}))),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        rollout_func=rollout if completion is not None else None,
    )
    trainer.steps = tuple(asked.get("loss_of_steps", ()))
    if "harm" in asked:
        trainer.add_callback(Vandal(HARMS[asked["harm"]]))
    return trainer


def main(checkpoint: str, output: str, words: str) -> None:
    quiet()
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    asked = json.loads(words)
    may_mount = True
    if asked.get("harm") in ("full", "read-only"):
        may_mount = mount_for_this_process(Path(output).parent, "8m")
    if not asked.get("shared_memory", True):
        may_mount = mount_for_this_process(Path("/dev/shm"), "4k")
        subprocess.run(["mount", "-o", "remount,ro", "/dev/shm"])
    if not may_mount:
        print("this container may not mount")
        return
    if not asked.get("sandbox", True):
        sandbox_tiers.fault = lambda tier, attempt: f"no {tier} here"
    run = Path(output)
    try:
        with exit_on_error():
            trainer = made_trainer(checkpoint, output, asked)
            trainer.train(resume_from_checkpoint=asked.get("resume"))
            (run.parent / "filler").unlink(missing_ok=True)
            trainer.save_model()
            trainer.accelerator.end_training()
    finally:
        if "harm" in asked:
            newest = whole_checkpoints.find(run).newest
            has_adapter = (run / "adapter_model.safetensors").is_file()
            left = f"{newest.name} is whole" if newest else "no checkpoint"
            print("on its disk:", f"{left}, and the adapter" if has_adapter else left)


if __name__ == "__main__":
    main(*sys.argv[1:])
