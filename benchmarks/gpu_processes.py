"""One of the processes whose gradients gpu_check.py compares: FOLDER DEVICE SIZE OUTPUT.

Each process trains one step on its share of the same completions. The first one writes the gradient
that all of them have.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from .gpu_correctness import GROUPS, SIZE, batch_for, train_once
from .gpu_models import SMALL, config_of, random_model
from .gpu_rows import Work
from .sides import make_trainer

# What a step leaves undone, so that its gradient and no other is seen.
SETTINGS = {
    "num_generations": SIZE,
    "max_completion_length": 64,
    "optim": "sgd",
    "learning_rate": 1e-12,
    "max_grad_norm": 0.0,
    "save_strategy": "no",
    "reward_workers": 0,
}


def main(folder: str, device: str, size: str, output: str) -> None:
    """Train one step in this process."""
    work = Work(Path(folder), device, size)
    # It says which GPU is this process's.
    state = PartialState(cpu=device == "cpu")
    rows = GROUPS * SIZE // state.num_processes
    with state.main_process_first():
        tokenizer = work.tokenizer()
    config = config_of(SMALL, size)
    here = str(state.device)
    trainer = make_trainer(
        "grpo-hf",
        tokenizer,
        policy=random_model(config, torch.float32, here),
        per_device_train_batch_size=rows,
        **SETTINGS,
    )
    batch = batch_for(config, here)
    first = state.process_index * rows
    own = {}
    for name, values in batch.items():
        own[name] = values[first : first + rows] if values.dim() else values
    numbers = train_once(trainer, own)
    if state.is_main_process:
        torch.save(numbers.gradient.cpu(), output)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
