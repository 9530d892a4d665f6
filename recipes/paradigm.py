"""The unified paradigm: SFT, RFT, DPO, online RFT, PPO and GRPO side by side (arXiv 2402.03300, section 5.2).

    python recipes/paradigm.py --method all --seeds 0 1 2 3 4    # embedded model and problems, offline, on one core
    python recipes/paradigm.py --method grpo --seeds 0
    python recipes/paradigm.py --plot                            # table and figures of the results that are there

Every method climbs the gradient of equation 5, E[1/|o| Σ_t GC ∇ log π_θ(o_t | q, o_<t)]; they differ in where the
outputs o come from, and in the coefficient GC.

    sft            gold workings                        1
    rft            right samples of the base            1
    dpo            right and wrong samples of the base  more where the policy tells them apart less (table 10)
    online_rft     samples of the policy                1 if right, else 0         advantage_estimator "reward", β = 0
    ppo            samples of the policy                advantage by a critic      advantage_estimator "gae"
    grpo           samples of the policy                advantage in the group
    grpo_process   samples of the policy                advantages of steps        process_reward "monte_carlo(n=2)"

Methods of a seed share the cold-started base, training prompts in one order, the reward, LoRA's settings, held-out
problems, and the budget: --budget tokens, of which each counts that a model sampled (rollouts, continuations for step
values, samples to learn from) or that is read in a demonstration. A method ends when its budget is spent. RFT and DPO
spend it before their first update, and then see what they can learn from --epochs times.

A pair of seed and method leaves a JSON file in --output_dir, and is not run again. Learning rates are --learning_rate
times RATES: for each method powers of two were tried until the accuracy at the end of its budget fell on both sides of
the best, on seed 100 alone.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from grpo_hf.errors import DataError, OutputExistsError
from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent
ONLINE = {
    "online_rft": ("--advantage_estimator", "reward", "--beta", "0"),
    "ppo": ("--advantage_estimator", "gae"),
    "grpo": (),
    "grpo_process": ("--process_reward", "monte_carlo(n=2)", "--reward_weights", "0", "1"),
}
RATES = {
    "sft": 4.0,
    "rft": 2.0,
    "dpo": 0.125,
    "online_rft": 1.0,
    "ppo": 1.0,
    "grpo": 1.0,
    "grpo_process": 2.0,
}
DIFFERENCES = (("online_rft", "rft"), ("grpo", "online_rft"), ("grpo_process", "grpo"))
PROMPTS = 16  # that the base is asked at a time
T_95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
)  # Student's, for 2 to 10 values

Results = dict[str, dict[int, dict[str, Any]]]  # of a method, by seed


def main(arguments: Sequence[str]) -> None:
    """Run the pairs of seed and method that are missing, and show what is there."""
    quiet()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", nargs="+", choices=[*RATES, "all"], default=["all"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budget", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--points", type=int, default=8)  # of a curve
    parser.add_argument("--samples", type=int, default=32)  # of a problem, for pass@k and maj@k
    parser.add_argument("--sampled_problems", type=int, default=100)
    parser.add_argument("--plot", action="store_true")
    settings, rest = parser.parse_known_args(arguments)
    methods = list(RATES) if "all" in settings.method else settings.method
    with exit_on_error():
        from transformers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        out = Path(read(rest).training.output_dir)
        if settings.plot:
            settings.seeds = []
        else:
            claim(out, {**vars(settings), "method": None, "seeds": None, "flags": rest})
        for seed in settings.seeds:
            folder = out / f"seed{seed}"
            missing = [
                name for name in ("base", *methods) if not (folder / f"{name}.json").exists()
            ]
            start = Start.of(folder, ("--seed", str(seed), *rest), settings) if missing else None
            for name in missing:
                run(start, name)
        results = read_results(out)
        show(results)
        draw(results, out)


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Let a folder hold the results of one set of settings only.

    Raises:
        OutputExistsError: it holds those of others.
    """
    file = out / "settings.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != settings:
        raise OutputExistsError(
            f"{out} holds results of other settings, in {file.name}. Give another --output_dir."
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings), encoding="utf-8")


def read(flags: Sequence[str]) -> Any:
    """The settings of one run."""
    from grpo_hf.runs.recipe import read_recipe

    return read_recipe(flags, default=HERE / "paradigm_tiny.yaml")


@dataclass(frozen=True)
class Start:
    """What all methods of a seed begin with."""

    folder: Path
    flags: tuple[str, ...]
    training: Any  # read once: new settings make accelerate forget the device, so there are none beside a trainer
    prompts: Any
    reward: Any
    settings: argparse.Namespace

    @classmethod
    def of(cls, folder: Path, flags: tuple[str, ...], settings: argparse.Namespace) -> "Start":
        """Check the task, and cold-start the base, or find that it was."""
        from grpo_hf.runs.preflight import check_model, check_task
        from grpo_hf.runs.train import cold_started

        recipe = read([*flags, "--output_dir", str(folder / "base")])
        task = check_task(recipe)
        base = recipe.model.model_name_or_path = cold_started(recipe)
        flags = (*flags, "--model_name_or_path", base, "--cold_start_steps", "0")
        return cls(
            folder, flags, recipe.training, check_model(recipe, task), task.rewards[0], settings
        )

    def recipe(self, name: str) -> Any:
        """The settings of a method's run."""
        recipe = read([*self.flags, "--output_dir", str(self.folder / name), *ONLINE.get(name, ())])
        recipe.training.learning_rate *= RATES.get(name, 1.0)
        return recipe

    def right(self, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[bool]:
        """Whether each answer gets the reward's full mark."""
        from grpo_hf.evaluation.answers import right_answers
        from grpo_hf.scoring.scored_reward import ScoredReward

        return [bool(right) for right in right_answers(ScoredReward(self.reward), rows, texts)]

    def accuracy(self, model: Any) -> float:
        """The share of held-out problems that the model's greedy answers solve."""
        from grpo_hf.evaluation.answers import greedy_completions

        rows = self.prompts.held_out.to_list()
        asked, longest = [row["prompt"] for row in rows], self.training.max_completion_length
        texts = greedy_completions(
            model, self.prompts.tokenizer, asked, max_new_tokens=longest, batch_size=len(rows)
        )
        return mean(self.right(rows, texts))

    def sample(
        self, model: Any, rows: Sequence[dict[str, Any]], count: int, seed: int
    ) -> list[list[tuple[str, bool]]]:
        """Answers to each prompt, sampled as in training, and whether they are right."""
        from grpo_hf.evaluation.answers import sampled_completions
        from grpo_hf.rollout.sampling import sampling_of

        groups = sampled_completions(
            model,
            self.prompts.tokenizer,
            [row["prompt"] for row in rows],
            count,
            sampling=sampling_of(self.training),
            seed=seed,
            max_new_tokens=self.training.max_completion_length,
            batch_size=PROMPTS,
        )
        flat = [text for group in groups for text in group]
        marks = iter(self.right([row for row in rows for _ in range(count)], flat))
        return [[(text, next(marks)) for text in group] for group in groups]

    def tokens(self, text: str) -> int:
        """Tokens of an answer, with the one that ends it."""
        return len(self.prompts.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1


def run(start: Start, name: str) -> None:
    """Run a method, or look at the base, and write what came of it."""
    from grpo_hf.models.loading import load_base

    begun = time.monotonic()
    shutil.rmtree(start.folder / name, ignore_errors=True)  # an interrupted run begins anew
    print(f"{start.folder.name}: {name}", flush=True)
    if name == "base":
        model = load_base(start.recipe(name).model)
        result: dict[str, Any] = {
            "accuracy": start.accuracy(model),
            "sampled": sampled(start, model),
        }
    else:
        trainer, tokens = online(start, name) if name in ONLINE else offline(start, name)
        curve = follow(trainer, start, name, tokens)
        trainer.train()
        result = {"curve": curve, "accuracy": curve[-1]["accuracy"]}
        if name == "grpo":
            result["sampled"] = sampled(start, trainer.model)
    result["seconds"] = time.monotonic() - begun
    file = start.folder / f"{name}.json"
    file.with_suffix(".partial").write_text(json.dumps(result), encoding="utf-8")
    file.with_suffix(".partial").rename(file)


def sampled(start: Start, model: Any) -> list[list[tuple[str, bool]]]:
    """What samples for held-out problems come to, and whether that is right."""
    rows = start.prompts.held_out.to_list()[: start.settings.sampled_problems]
    groups = start.sample(model, rows, start.settings.samples, seed=start.training.seed)
    return [
        [(text.rpartition("####")[2].strip(), right) for text, right in group] for group in groups
    ]


def online(start: Start, name: str) -> tuple[Any, int | None]:
    """A trainer that samples as it goes; its tokens are counted on the way."""
    from trl import get_peft_config

    from grpo_hf import GRPOTrainer
    from grpo_hf.models.loading import load_base
    from grpo_hf.reporting.progress import ProgressLine

    recipe = start.recipe(name)
    trainer = GRPOTrainer(
        load_base(recipe.model),
        [start.reward],
        recipe.training,
        train_dataset=start.prompts.train,
        processing_class=start.prompts.tokenizer,
        peft_config=get_peft_config(recipe.model),
    )
    trainer.remove_callback(ProgressLine)
    return trainer, None


def offline(start: Start, name: str) -> tuple[Any, int]:
    """A trainer for a fixed set of answers, and what that set has cost."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, get_peft_config

    from grpo_hf.models.loading import load_base

    rows, tokens = demonstrations(start) if name == "sft" else samples_of_base(start, name)
    if not rows:
        raise DataError(
            f"{name}: no sample of the base to learn from. Give more --cold_start_steps or --budget."
        )
    recipe = start.recipe(name)
    trainer_class, config_class = (
        (DPOTrainer, DPOConfig) if name == "dpo" else (SFTTrainer, SFTConfig)
    )
    kept = (
        "output_dir",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "per_device_train_batch_size",
    )
    kept += ("gradient_checkpointing", "bf16", "use_cpu", "seed", "report_to", "save_strategy")
    trainer = trainer_class(
        load_base(recipe.model),
        args=config_class(
            **{setting: getattr(recipe.training, setting) for setting in kept},
            num_train_epochs=1 if name == "sft" else start.settings.epochs,
            train_sampling_strategy="sequential"
            if name == "sft"
            else "random",  # samples of a prompt lie together
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=start.prompts.tokenizer,
        peft_config=get_peft_config(recipe.model),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, tokens


def demonstrations(start: Start) -> tuple[list[dict[str, Any]], int]:
    """Gold workings of the training prompts, again from the first where the budget is not spent; and their tokens."""
    rows, spent = [], 0
    for row in cycle(start.prompts.train.to_list()):
        if spent >= start.settings.budget:
            break
        rows.append({"prompt": row["prompt"], "completion": answer(row["prompt"], row["answer"])})
        spent += start.tokens(row["answer"])
    return rows, spent


def samples_of_base(start: Start, name: str) -> tuple[list[dict[str, Any]], int]:
    """Right samples, or for DPO pairs of a right and a wrong one; and the tokens of all that were sampled.

    The methods would draw the same samples, so the second finds them; each has paid for them.
    """
    file = start.folder / "samples.json"
    if not file.exists():
        file.write_text(json.dumps(list(ask_base(start))), encoding="utf-8")
    rows, spent = [], 0
    for prompt, group in json.loads(file.read_text(encoding="utf-8")):
        good = [answer(prompt, text) for text, right in group if right]
        bad = [answer(prompt, text) for text, right in group if not right]
        spent += sum(start.tokens(text) for text, _ in group)
        if name == "rft":
            rows += [{"prompt": prompt, "completion": text} for text in good]
        else:
            pairs = zip(good, bad, strict=False)  # as many as there are of the fewer
            rows += [
                {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                for chosen, rejected in pairs
            ]
    return rows, spent


def ask_base(start: Start) -> Iterator[tuple[Any, list[tuple[str, bool]]]]:
    """A group of samples for one training prompt after the other, until the budget is spent."""
    from grpo_hf.models.loading import load_base

    model, spent = load_base(start.recipe("base").model), 0
    rows = cycle(start.prompts.train.to_list())
    while spent < start.settings.budget:
        batch = [next(rows) for _ in range(PROMPTS)]
        groups = start.sample(
            model, batch, start.training.num_generations, seed=start.training.seed + spent
        )
        for row, group in zip(batch, groups, strict=True):
            if spent < start.settings.budget:
                spent += sum(start.tokens(text) for text, _ in group)
                yield row["prompt"], group


def answer(prompt: Any, text: str) -> Any:
    """A text in the form of the prompt: a message, or as it is."""
    return [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text


def follow(trainer: Any, start: Start, name: str, tokens: int | None) -> list[dict[str, Any]]:
    """Measure accuracy at some points of the way, and end a run whose tokens (None: not sampled yet) are spent.

    The way of a method that samples as it goes is its budget; that of the others, whose tokens are known before, their
    updates. grpo-hf logs what a rollout has cost as `completions/mean_length` and `monte_carlo/tokens`.
    """
    from transformers import TrainerCallback

    budget, marks = start.settings.budget, start.settings.points
    curve = [{"share": 0.0, "updates": 0, "tokens": 0, "accuracy": start.accuracy(trainer.model)}]
    spent = 0.0

    class Curve(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            nonlocal spent
            if name in ONLINE:
                spent += logs.get("completions/mean_length", 0.0) * args.generation_batch_size
                spent += logs.get("monte_carlo/tokens", 0.0)
            share = spent / budget if tokens is None else state.global_step / state.max_steps
            if int(share * marks) > int(curve[-1]["share"] * marks) and curve[-1]["share"] < 1:
                point = {
                    "share": min(share, 1.0),
                    "updates": state.global_step,
                    "tokens": round(tokens or spent),
                }
                curve.append(point | {"accuracy": start.accuracy(trainer.model)})
                print(
                    f"  {share:4.0%}  {point['updates']} updates  accuracy {curve[-1]['accuracy']:.3f}",
                    flush=True,
                )
            control.should_training_stop |= share >= 1

    trainer.add_callback(Curve())
    return curve


def read_results(out: Path) -> Results:
    """What finished pairs have left."""
    results: Results = {}
    for name in ("base", *RATES):
        files = {
            int(file.parent.name.removeprefix("seed")): file
            for file in sorted(out.glob(f"seed*/{name}.json"))
        }
        results[name] = {
            seed: json.loads(files[seed].read_text(encoding="utf-8")) for seed in sorted(files)
        }
    return {name: of_seeds for name, of_seeds in results.items() if of_seeds}


def interval(values: Sequence[float]) -> str:
    """The mean, and its 95% interval over seeds by Student's t, where there are several."""
    return f"{mean(values):.3f}" + (f" ± {half_width(values):.3f}" if len(values) > 1 else "")


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of a mean; 0 of a single value, where nothing is known."""
    n = len(values)
    return (T_95[n - 2] if n - 2 < len(T_95) else 1.96) * stdev(values) / n**0.5 if n > 1 else 0.0


def show(results: Results) -> None:
    """Print each method's final accuracy, differences between methods of the same seed, and when steps caught up."""
    from rich.console import Console
    from rich.table import Table

    seeds = sorted({seed for of_seeds in results.values() for seed in of_seeds})
    table = Table(
        "method",
        *(f"seed {seed}" for seed in seeds),
        "mean ± 95%",
        "updates",
        "tokens",
        title="accuracy",
    )
    final = {
        name: {seed: found["accuracy"] for seed, found in of.items()}
        for name, of in results.items()
    }
    for name, of_seeds in final.items():
        ends = [found["curve"][-1] for found in results[name].values()] if name != "base" else []
        cost = [
            f"{mean(end[what] for end in ends):,.0f}" if ends else ""
            for what in ("updates", "tokens")
        ]
        shown = [f"{of_seeds[seed]:.3f}" if seed in of_seeds else "" for seed in seeds]
        table.add_row(name, *shown, interval([*of_seeds.values()]), *cost)
    console = Console(highlight=False)
    console.print(table)
    for one, other in DIFFERENCES:
        both = sorted(final.get(one, {}).keys() & final.get(other, {}).keys())
        if both:
            gains = [final[one][seed] - final[other][seed] for seed in both]
            console.print(
                f"{one} − {other}, paired by seed: {interval(gains)}  ({len(both)} seeds)"
            )
    for seed, found in results.get("grpo_process", {}).items():
        if seed in results.get("grpo", {}):
            reached = (
                point for point in found["curve"] if point["accuracy"] >= final["grpo"][seed]
            )
            point, of_grpo = next(reached, None), results["grpo"][seed]["curve"][-1]
            when = (
                f"{point['updates']} updates, {point['tokens']:,} tokens"
                if point
                else "not reached"
            )
            ends = f"{of_grpo['updates']} updates, {of_grpo['tokens']:,} tokens"
            console.print(f"seed {seed}: grpo's final accuracy ({ends}) with grpo_process: {when}")


def draw(results: Results, out: Path) -> None:
    """Draw the counterparts of the paper's figures 5 and 7 into a folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, panel in (("accuracy", draw_curves), ("maj_and_pass_at_k", draw_samples)):
        figure, axes = pyplot.subplots(figsize=(8, 5))
        panel(axes, results)
        axes.legend()
        figure.tight_layout()
        figure.savefig(out / f"{name}.png", dpi=120)
        pyplot.close(figure)
        print(f"figure: {out / name}.png", flush=True)


def draw_curves(axes: Any, results: Results) -> None:
    """What each method adds to its base's accuracy along the way (figure 5); bases differ more than methods do."""
    grid = [index / 16 for index in range(17)]
    for name in [name for name in RATES if name in results]:
        curves = [found["curve"] for found in results[name].values()]
        gains = [[at(curve, share) - curve[0]["accuracy"] for share in grid] for curve in curves]
        band(
            axes,
            grid,
            gains,
            label=f"{name}, {len(curves)} seeds" if len(curves) > 1 else f"{name}, 1 seed",
        )
    axes.set(
        xlabel="share of the budget (sft, rft, dpo: of the updates)",
        ylabel="accuracy above the base's, greedy",
    )


def draw_samples(axes: Any, results: Results) -> None:
    """maj@k and pass@k of the base and of what GRPO made of it (figure 7)."""
    from grpo_hf.evaluation.statistics import maj_at_k, pass_at_k

    for name, color in [
        (name, f"C{i}") for i, name in enumerate(("base", "grpo")) if name in results
    ]:
        groups = [found["sampled"] for found in results[name].values()]
        ks = [2**power for power in range(6) if 2**power <= min(map(len, groups[0]))]
        said = [[[text for text, _ in of_problem] for of_problem in of_seed] for of_seed in groups]
        right = [[[mark for _, mark in of_problem] for of_problem in of_seed] for of_seed in groups]
        passed = [[pass_at_k(of_seed, k) for k in ks] for of_seed in right]
        voted = [[maj_at_k(*of_seed, k) for k in ks] for of_seed in zip(said, right, strict=True)]
        band(axes, ks, passed, label=f"pass@k, {name}", color=color, linestyle="--")
        band(axes, ks, voted, label=f"maj@k, {name}", color=color)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="k samples at the temperature of training", ylabel="accuracy, held-out problems"
    )


def band(axes: Any, xs: Sequence[float], of_seeds: Sequence[Sequence[float]], **style: Any) -> None:
    """A line through the means over seeds, in its 95% interval."""
    values = list(zip(*of_seeds, strict=True))
    (line,) = axes.plot(xs, [mean(at_x) for at_x in values], **style)
    low, high = ([mean(at_x) + sign * half_width(at_x) for at_x in values] for sign in (-1, 1))
    axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.12, linewidth=0)


def at(curve: Sequence[dict[str, Any]], share: float) -> float:
    """The accuracy at a share of the way, between the points that were measured."""
    from numpy import interp

    return float(
        interp(share, [point["share"] for point in curve], [point["accuracy"] for point in curve])
    )


if __name__ == "__main__":
    main(sys.argv[1:])
