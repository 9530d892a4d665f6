"""Train the tiny checkpoint under an engine that shards weights, with our class or TRL's.

    accelerate launch ... tests/scripts/sharded_training.py CHECKPOINT FOLDER ENGINE RUNS

ENGINE is a key of `support.sharding.ENGINES`. RUNS is JSON: by name, the settings of a run, where
`library` is "grpo_hf" or "trl", `extra` is a word below, and the others are those of its
configuration. Each run writes its adapter and `packed.json` into a folder of its name. Completions
depend on the prompt, its place in its group and the step alone, so all ways to run this train on
the same.

    judged      a process reward model on the policy's base pays the steps of some completions
    compared    base and adapter answer five prompts at the end
    resumed     a second trainer goes on from the checkpoint of step 2, and a third from the end
    refused     settings that need whole weights
"""

import json
import random
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support.sharding import ENGINES, shards_on_a_cpu
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import grpo_hf
import grpo_hf.errors
from grpo_hf.evaluation.comparison import answer_greedily, write_answers

COMMON: dict[str, Any] = {
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "max_completion_length": 8,
    "max_steps": 3,
    "logging_steps": 1,
    "learning_rate": 0.5,
    # Where gradients are near 0, an adaptive optimizer would turn rounding into steps.
    "optim": "sgd",
    "report_to": "none",
    "gradient_checkpointing": False,
    "save_strategy": "no",
    # What our defaults are, and TRL's are not.
    "bf16": False,
    "beta": 0.04,
    "loss_type": "grpo",
    "use_bias_correction_kl": False,
}


def longer_is_better(completion_ids: list[list[int]], **_: Any) -> list[float]:
    # The first token tells completions of equal length apart.
    return [len(ids) + ids[0] / 1000 for ids in completion_ids]


def written(prompts: list[str], trainer: Any, *, silent: bool = False) -> dict[str, Any]:
    """Be a rollout function: return completions that depend on prompt, place and step.

    Args:
        silent: whether the second process writes no word, so that it has no step to judge.
    """
    tokenizer = trainer.processing_class
    first = trainer.accelerator.process_index * len(prompts)
    completions = []
    for row, prompt in enumerate(prompts):
        place = (first + row) % trainer.num_generations
        draw = random.Random(f"{prompt}/{place}/{trainer.state.global_step}")
        length = 0 if silent and trainer.accelerator.process_index else draw.randint(1, 7)
        tokens = [draw.randrange(5, len(tokenizer)) for _ in range(length)]
        completions.append([*tokens, tokenizer.eos_token_id])
    ids = tokenizer(text=prompts)["input_ids"]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


def train(
    checkpoint: str, output: Path, settings: dict[str, Any], resume: str | None = None
) -> None:
    library = {"trl": trl, "grpo_hf": grpo_hf}[settings.pop("library", "grpo_hf")]
    extra = settings.pop("extra", "")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    policy: dict[str, Any] = {"model": checkpoint, "peft_config": lora}
    rewards: list[Any] = [longer_is_better]
    if extra == "judged":
        set_seed(0)
        base = AutoModelForCausalLM.from_pretrained(checkpoint)
        policy = {"model": get_peft_model(base, lora)}
        judge = grpo_hf.RewardModel.on(policy["model"], tokenizer)
        rewards.append(judge.as_step_reward(by=" "))
    trainer = library.GRPOTrainer(
        **policy,
        reward_funcs=rewards,
        args=library.GRPOConfig(output_dir=str(output), **COMMON | settings),
        train_dataset=Dataset.from_list(
            [{"prompt": f"{n} apples and {n + 1} more: "} for n in range(16)]
        ),
        processing_class=tokenizer,
        rollout_func=partial(written, silent=extra == "judged"),
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if extra == "compared":
        compare(trainer, output / "evaluation.jsonl")
    if trainer.is_world_process_zero():
        (output / "packed.json").write_text(json.dumps(bool(getattr(trainer, "packs", False))))
    trainer.accelerator.wait_for_everyone()


def compare(trainer: Any, file: Path) -> None:
    """Compare base and adapter as a run does at its end, on a number of prompts that is odd."""
    rows = [{"prompt": f"{10**n} pears and {n}: "} for n in range(5)]
    answers = {}
    for side in ("adapter", "base"):
        answers[side] = answer_greedily(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            rows,
            trainer.run_rewards.entries_for(trainer.reward_funcs)[0],
            side=side,
            decoding={"max_new_tokens": 6, "batch_size": 2},
            trainer_state=trainer.state,
        )
    if trainer.is_world_process_zero():
        write_answers(file, [row["prompt"] for row in rows], answers)


def go_on(checkpoint: str, output: Path, settings: dict[str, Any]) -> None:
    """Take up the checkpoint of the second step, and then the last one, which is the end."""
    end = (output / "adapter_model.safetensors").read_bytes()
    for step in (2, 3):
        for folder in output.glob("checkpoint-*"):
            if int(folder.name.split("-")[1]) > step and PartialState().is_main_process:
                shutil.rmtree(folder)
        PartialState().wait_for_everyone()
        try:
            train(checkpoint, output, dict(settings), resume="auto")
        except grpo_hf.errors.ConfigError as error:
            print(f"refused: {error}", flush=True)
        same = end == (output / "adapter_model.safetensors").read_bytes()
        print(f"from step {step}: {'the same' if same else 'another'} adapter", flush=True)


def refuse(checkpoint: str, output: Path, settings: dict[str, Any]) -> None:
    """Print what settings that need whole weights are refused with."""
    for words in ({"advantage_estimator": "gae"}, {"reference_reset_every": 1}):
        try:
            train(checkpoint, output, settings | words | {"extra": ""})
        except grpo_hf.errors.ConfigError as error:
            print(f"refused: {error}", flush=True)


def main(checkpoint: str, folder: Path, engine: str, runs: dict[str, Any]) -> None:
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    if engine.startswith("zero"):
        import deepspeed  # noqa: F401
    with shards_on_a_cpu():
        for name, settings in runs.items():
            settings = ENGINES[engine] | settings
            if settings.get("extra") == "refused":
                refuse(checkpoint, folder / name, settings)
                continue
            train(checkpoint, folder / name, dict(settings))
            if settings.get("extra") == "resumed":
                go_on(checkpoint, folder / name, settings)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
