"""Train a process reward model that finds the first mistake in a chain of reasoning.

    python recipes/process_reward_model.py --dataset_path ./data     # SmolLM2-135M
    python recipes/process_reward_model.py --dataset_path ./data --model_name_or_path ./model

The data is BIG-Bench Mistake (Tyen et al., arXiv 2311.08516), labelled by people. It has one file
TASK.jsonl per task, with the columns `input`, `steps` and `mistake_index`. `mistake_index` is the
first wrong step, or null. The steps before the mistake are right and get the label 1. The mistake
gets the label 0. Nobody judged the steps after the mistake, so they get no label.

    r_k   = the head's output at the last token of step k, through an adapter on the frozen base
    p_k   = σ(r_k), the probability that step k is right if all steps before it are right
    loss  = binary cross-entropy of p_k, over labelled steps

p_k is conditional on right steps before it, like a hazard rate. So for a trace with a mistake, the
probability that the first mistake is step k is P(k) ∝ (1 − p_k) Π_{j<k} p_j. The model's answer is
the k with the largest P(k). This needs no threshold. The step with the lowest p_k would be a worse
answer: it could lie after the mistake, where the training data defines no label.

The results compare the share of mistakes found with three baselines: a random step, always the last
step, and the most frequent place of a mistake in the training traces of the same task.

`same_place` compares right steps with first mistakes at the same place in traces of the same task.
It is the share of such pairs in which the right step has the higher score. A comparison over all
places would be high even for a model that only counts steps, because mistakes come late.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from first_mistakes.lessons import fit, load, score
from first_mistakes.measures import judge
from first_mistakes.traces import read, split
from grpo_hf.errors import ConfigError
from grpo_hf.run_files import REPORT_FILE
from grpo_hf.runs.program import exit_on_error, quiet

RESULTS = "results.json"

# Wide enough for all columns of the results on one line.
CONSOLE_WIDTH = 120

HEADINGS = (
    "task",
    "traces",
    "found",
    "95% interval",
    "chance",
    "last step",
    "frequent place",
    "same place",
)


def flags() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--dataset_path", type=Path, required=True, help="folder with TASK.jsonl")
    parser.add_argument("--model_name_or_path", default="models/smollm2-135m-instruct")
    parser.add_argument("--train_rows", type=int, default=100, help="traces per task to learn from")
    parser.add_argument(
        "--eval_rows", type=int, default=60, help="traces per task that are held out"
    )
    parser.add_argument(
        "--max_length",
        type=int,
        default=512,
        help="tokens of a training trace, which ends at a step",
    )
    parser.add_argument(
        "--max_eval_length",
        type=int,
        default=2048,
        help="tokens of a held-out trace; the rest is not read",
    )
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--lora_target_modules", nargs="+", default=["all-linear"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/process_reward_model"))
    return parser


def main(arguments: Sequence[str]) -> None:
    """Train on some traces of every task, and look for the mistakes in held-out traces."""
    quiet()
    settings = flags().parse_args(arguments)
    with exit_on_error():
        # Data and folder are checked first, because the model takes a while to load.
        train, held_out = split(read(settings.dataset_path), settings)
        if (settings.output_dir / RESULTS).exists():
            raise ConfigError(
                f"{settings.output_dir} holds a run already; give another --output_dir."
            )
        tokenizer, model = load(settings)
        fit(model, tokenizer, train, settings)
        model.save(settings.output_dir / "reward_model")
        scores = score(model, tokenizer, held_out, settings)
        results = judge(train, held_out, scores)
        # The file marks the folder as used, so a run that fails before can be repeated.
        write_results(results, settings)
        show(results, settings.output_dir / REPORT_FILE)


def write_results(results: dict[str, Any], settings: argparse.Namespace) -> None:
    """Write the settings and the results to a file."""
    # Paths have no form in JSON, so all settings are written as text.
    texts = {name: str(value) for name, value in vars(settings).items()}
    report = json.dumps({"settings": texts, "tasks": results}, indent=1)
    (settings.output_dir / RESULTS).write_text(report + "\n", encoding="utf-8")


def show(results: dict[str, Any], page: Path) -> None:
    """Print the results as a table, which is also the report of the run."""
    from rich.table import Table

    from grpo_hf.runs.finished import show_and_keep

    table = Table(*HEADINGS, title="first mistakes of held-out traces")
    for task, result in results.items():
        share_won = result["same_place"]
        table.add_row(
            task,
            str(result["total"]),
            f"{result['share']:.3f}",
            f"{result['low']:.3f} to {result['high']:.3f}",
            f"{result['chance']:.3f}",
            f"{result['last_step']:.3f}",
            f"{result['frequent_place']:.3f}",
            # Empty if no place has both a right step and a first mistake.
            "" if share_won is None else f"{share_won:.3f}",
        )
    show_and_keep([table], page, width=CONSOLE_WIDTH)


if __name__ == "__main__":
    main(sys.argv[1:])
