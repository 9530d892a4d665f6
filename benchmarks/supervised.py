"""Teach a model GSM8K's solutions, as a start for GRPO: all weights, not an adapter.

    python -m benchmarks.supervised --data FOLDER models/smollm2-gsm8k
    python -m benchmarks.learning --task gsm8k_taught --data FOLDER --model models/smollm2-gsm8k

DeepSeekMath-RL begins from a model that was taught solutions, too (arXiv 2402.03300, section 4.2).
The result is an ordinary checkpoint with its tokenizer.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .common import MODEL
from .tasks import gsm8k_solutions


def teach(settings: argparse.Namespace) -> None:
    """Train a model on the solutions of the training split, and save it with its tokenizer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    rows = []
    for row in gsm8k_solutions(settings.data):
        completion = [{"role": "assistant", "content": row["solution"]}]
        rows.append({"prompt": row["prompt"], "completion": completion})
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32),
        SFTConfig(
            output_dir=str(settings.output),
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            logging_steps=10,
            bf16=torch.cuda.is_available(),
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(settings.output))
    tokenizer.save_pretrained(settings.output)


def main(given: Sequence[str] | None = None) -> None:
    """Teach the model of the command line, unless its folder holds one already."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder of the checkpoint")
    parser.add_argument("--model", default=str(MODEL), help="a folder or a name")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds gsm8k/")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_steps", type=int, default=-1, help="end earlier, to try it")
    settings = parser.parse_args(given)
    if (settings.output / "config.json").is_file():
        raise SystemExit(f"error: {settings.output} holds a model already. Name another folder.")
    teach(settings)


if __name__ == "__main__":
    main()
