"""The unified paradigm: compare SFT, RFT, DPO, online RFT, PPO and GRPO under one token budget.

    python recipes/paradigm.py --method all --seeds 0 1 2 3 4    # embedded model, offline, one core
    python recipes/paradigm.py --method grpo --seeds 0
    python recipes/paradigm.py --plot                            # show the results on disk
    python recipes/paradigm.py --config recipes/paradigm_long.yaml --method grpo grpo_gain

Every method follows the gradient of equation 5, E[1/|o| Σ_t GC ∇ log π_θ(o_t | q, o_<t)]. The
methods differ in the source of the outputs o and in the gradient coefficient GC.

    method         outputs o                            GC
    sft            gold solutions                       1
    rft            correct samples of the base          1
    dpo            correct and wrong base samples       small for pairs the policy can tell apart
    online_rft     samples of the policy                1 if correct, else 0
    ppo            samples of the policy                advantage from a critic
    grpo           samples of the policy                advantage within the group
    grpo_process   samples of the policy                advantage of every step
    grpo_gain      samples of the policy                the same, of what a step adds to the value

DPO's coefficient is in table 10 of the paper. The flags of the last five methods are `ONLINE` in
unified_paradigm/methods.py, beside the other parts of this program.

All methods of one seed share the base (after its cold start), the training prompts and their
order, the reward, the LoRA settings, the held-out prompts and the budget. The budget (--budget) is
a number of tokens. A token counts when a model samples it (in rollouts, in continuations that value
a step, in training samples) or when a method reads it in a demonstration. A method ends when its
budget is spent. RFT and DPO spend the budget before their first update, then train on the samples
for --epochs epochs.

Every pair of seed and method writes one JSON file into --output_dir. A pair with a file is not run
again. The learning rate of a method is --learning_rate times its entry in `RATES`, beside `ONLINE`.
The entries are powers of two, tuned on seed 100 only: for each method, values were tried until the
final accuracy was lower on both sides of the best value. grpo_gain has the entry of grpo_process,
untuned.

Source: DeepSeekMath (arXiv 2402.03300), section 5.2.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_hf.run_files import REPORT_FILE, write_whole
from grpo_hf.runs.program import exit_on_error, quiet
from unified_paradigm.figures import draw_figures
from unified_paradigm.learning_curve import follow
from unified_paradigm.methods import ONLINE, RATES
from unified_paradigm.results import Results, claim_folder, read_results
from unified_paradigm.start import Start, read_settings
from unified_paradigm.tables import show_tables
from unified_paradigm.trainers import offline_trainer, online_trainer


def main(arguments: Sequence[str]) -> None:
    """Run the missing pairs of seed and method, then show all results on disk."""
    quiet()
    settings, recipe_flags = flags().parse_known_args(arguments)
    methods = list(RATES) if "all" in settings.method else settings.method
    with exit_on_error():
        from transformers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        out = Path(read_settings(recipe_flags).training.output_dir)
        if not settings.plot:
            # The methods and seeds may differ between calls, because each pair has its own file.
            shared = {**vars(settings), "method": None, "seeds": None, "flags": recipe_flags}
            claim_folder(out, shared)
            for seed in settings.seeds:
                seed_flags = ("--seed", str(seed), *recipe_flags)
                run_missing(out / f"seed{seed}", ("base", *methods), seed_flags, settings)
        results = read_results(out)
        show_tables(results)
        draw_figures(results, out)
        write_report(results, out)


def flags() -> argparse.ArgumentParser:
    """Return a parser for the flags of this program; other flags go to the recipe."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", nargs="+", choices=[*RATES, "all"], default=["all"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budget", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=2)
    # Measured points of a learning curve.
    parser.add_argument("--points", type=int, default=8)
    # Samples per held-out prompt, for pass@k and maj@k.
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sampled_problems", type=int, default=100)
    parser.add_argument("--plot", action="store_true")
    return parser


def run_missing(
    folder: Path, names: Sequence[str], flags: tuple[str, ...], settings: argparse.Namespace
) -> None:
    """Run the methods of one seed that have no result in its folder yet."""
    missing = []
    for name in names:
        if not (folder / f"{name}.json").exists():
            missing.append(name)
    # The cold start takes a while; a seed with all results does not need it.
    if not missing:
        return
    start = Start.of(folder, flags, settings)
    for name in missing:
        run(start, name)


def run(start: Start, name: str) -> None:
    """Run a method, or evaluate the base, and write the result to a file."""
    begun = time.monotonic()
    # What an interrupted run left here cannot be resumed: its token count is lost.
    shutil.rmtree(start.folder / name, ignore_errors=True)
    print(f"{start.folder.name}: {name}", flush=True)
    result = evaluate_base(start) if name == "base" else train_method(start, name)
    result["seconds"] = time.monotonic() - begun
    # A method counts as done when its file exists, so the file must appear only when complete.
    write_whole(start.folder / f"{name}.json", json.dumps(result))


def evaluate_base(start: Start) -> dict[str, Any]:
    """Return the base's accuracy and its samples for the held-out prompts."""
    from grpo_hf.models.loading import load_base

    model = load_base(start.recipe("base").model)
    return {"accuracy": start.accuracy(model), "sampled": sampled(start, model)}


def train_method(start: Start, name: str) -> dict[str, Any]:
    """Train with one method; return its learning curve and final accuracy."""
    trainer_of = online_trainer if name in ONLINE else offline_trainer
    trainer, tokens = trainer_of(start, name)
    curve = follow(trainer, start, name, tokens)
    trainer.train()
    result = {"curve": curve, "accuracy": curve[-1]["accuracy"]}
    # Figure 7 compares only GRPO with the base.
    if name == "grpo":
        result["sampled"] = sampled(start, trainer.model)
    return result


def sampled(start: Start, model: Any) -> list[list[tuple[str, bool]]]:
    """Sample completions of held-out prompts; return each final answer and its correctness."""
    rows = start.prompts.held_out.to_list()[: start.settings.sampled_problems]
    groups = start.sample(model, rows, start.settings.samples, seed=start.training.seed)
    answer_groups = []
    for group in groups:
        answers = []
        for text, right in group:
            # maj@k votes on the answer alone, which GSM8K's format puts behind ####.
            answers.append((text.rpartition("####")[2].strip(), right))
        answer_groups.append(answers)
    return answer_groups


def write_report(results: Results, out: Path) -> None:
    """Write the methods that sample as they train beside each other, of the first seed on disk."""
    from grpo_hf.runs.finished import say_report

    runs = []
    for name in ONLINE:
        for seed in sorted(results.get(name, {}))[:1]:
            runs.append(out / f"seed{seed}" / name)
    say_report(*runs, page=out / REPORT_FILE)


if __name__ == "__main__":
    main(sys.argv[1:])
