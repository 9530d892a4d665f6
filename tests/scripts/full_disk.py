"""Train where the output folder is a small disk, which a callback fills before a step's save."""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from support.mounts import mount_for_this_process
from transformers import TrainerCallback

from grpo_hf import GRPOConfig, GRPOTrainer
from grpo_hf.run_files import read_lines
from grpo_hf.runs.program import exit_on_error


class Filler(TrainerCallback):
    """Fill the disk once a step is done; a step before that has saved a checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            with (self.folder / "filler").open("wb", buffering=0) as filler:
                try:
                    while True:
                        filler.write(bytes(1024))
                except OSError:
                    pass


def pays(completions, **_):
    return [float(len(completion)) for completion in completions]


def main(model: str, folder: Path, fills: int, saves: str) -> None:
    if not mount_for_this_process(folder, "8m"):
        print("may not mount")
        return
    run = folder / "run"
    args = GRPOConfig(
        output_dir=str(run),
        num_generations=8,
        per_device_train_batch_size=8,
        max_completion_length=16,
        max_steps=4,
        logging_steps=1,
        save_strategy=saves,
        save_steps=2,
        use_cpu=True,
        report_to="none",
        reward_workers=0,
    )
    data = Dataset.from_dict({"prompt": [f"say {number}" for number in range(8)]})
    adapter = LoraConfig(target_modules="all-linear", r=2)
    trainer = GRPOTrainer(model, pays, args, train_dataset=data, peft_config=adapter)
    trainer.add_callback(Filler(folder, fills))
    try:
        with exit_on_error():
            trainer.train()
        print("exit code 0")
        (folder / "filler").unlink()
        trainer.save_model()
        print("adapter saved:", (run / "adapter_model.safetensors").is_file())
    except SystemExit as left:
        print("exit code", left.code)
    for file in (run / "metrics.jsonl", run / "credit.jsonl"):
        steps = [row["step"] for row in read_lines(file)] if file.is_file() else []
        print(file.name, steps)
    for checkpoint in sorted(run.glob("checkpoint-*/trainer_state.json")):
        moments = torch.load(checkpoint.parent / "optimizer.pt", weights_only=False)["state"]
        print("whole:", checkpoint.parent.name, bool(moments))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
