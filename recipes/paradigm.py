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

DPO's coefficient is in table 10 of the paper. The flags of the last five methods are in `ONLINE`.

All methods of one seed share the base (after its cold start), the training prompts and their
order, the reward, the LoRA settings, the held-out prompts and the budget. The budget (--budget) is
a number of tokens. A token counts when a model samples it (in rollouts, in continuations that value
a step, in training samples) or when a method reads it in a demonstration. A method ends when its
budget is spent. RFT and DPO spend the budget before their first update, then train on the samples
for --epochs epochs.

Every pair of seed and method writes one JSON file into --output_dir. A pair with a file is not run
again. The learning rate of a method is --learning_rate times its entry in `RATES`. The entries are
powers of two, tuned on seed 100 only: for each method, values were tried until the final accuracy
was lower on both sides of the best value. grpo_gain has the entry of grpo_process, untuned.

Source: DeepSeekMath (arXiv 2402.03300), section 5.2.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from grpo_hf.errors import DataError, OutputExistsError
from grpo_hf.run_files import REPORT_FILE
from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent

# The methods that sample from the policy while they train, each with its flags for GRPOTrainer.
ONLINE = {
    "online_rft": ("--advantage_estimator", "reward", "--beta", "0"),
    "ppo": ("--advantage_estimator", "gae"),
    "grpo": (),
    "grpo_process": ("--process_reward", "monte_carlo(n=2)", "--reward_weights", "0", "1"),
    "grpo_gain": (
        "--process_reward",
        "monte_carlo(n=4, credit='gain', groups='mixed')",
        "--reward_weights",
        "0",
        "1",
    ),
}
# Factors of the learning rate; the text at the top says how they were found.
RATES = {
    "sft": 4.0,
    "rft": 2.0,
    "dpo": 0.125,
    "online_rft": 1.0,
    "ppo": 1.0,
    "grpo": 1.0,
    "grpo_process": 2.0,
    "grpo_gain": 2.0,
}
# Pairs of methods that differ in one respect: the source of the samples, the baseline, and the
# supervision of steps.
DIFFERENCES = (
    ("online_rft", "rft"),
    ("grpo", "online_rft"),
    ("grpo_process", "grpo"),
    ("grpo_gain", "grpo"),
)

# Settings that the offline trainers (SFT, DPO) take over from the recipe, so that they train in the
# same way as the online methods.
SHARED_SETTINGS = (
    "output_dir",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "per_device_train_batch_size",
    "gradient_checkpointing",
    "bf16",
    "use_cpu",
    "seed",
    "report_to",
    "save_strategy",
)

# Prompts per batch when the base is sampled.
PROMPTS = 16

# Two-sided 95% quantiles of Student's t distribution for 1 to 9 degrees of freedom (2 to 10 seeds),
# and the quantile of the normal distribution for more.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
Z_95 = 1.96

# Figure 5 interpolates the curves at this many equal intervals of the budget.
GRID_INTERVALS = 16

# Figure 7 shows k = 1, 2, 4, ..., as far as there are samples, up to this k.
LARGEST_K = 32

# The result of every seed, by method.
Results = dict[str, dict[int, dict[str, Any]]]


def main(arguments: Sequence[str]) -> None:
    """Run the missing pairs of seed and method, then show all results on disk."""
    quiet()
    settings, recipe_flags = flags().parse_known_args(arguments)
    methods = list(RATES) if "all" in settings.method else settings.method
    with exit_on_error():
        from transformers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        out = Path(read(recipe_flags).training.output_dir)
        if not settings.plot:
            # The methods and seeds may differ between calls, because each pair has its own file.
            claim(out, {**vars(settings), "method": None, "seeds": None, "flags": recipe_flags})
            for seed in settings.seeds:
                seed_flags = ("--seed", str(seed), *recipe_flags)
                run_missing(out / f"seed{seed}", ("base", *methods), seed_flags, settings)
        results = read_results(out)
        show(results)
        draw(results, out)
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


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Reserve a folder for the results of one set of settings.

    Raises:
        OutputExistsError: the folder holds results of other settings.
    """
    file = out / "settings.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != settings:
        raise OutputExistsError(
            f"{out} holds results of other settings, in {file.name}. Give another --output_dir."
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings), encoding="utf-8")


def read(flags: Sequence[str]) -> Any:
    """Return the settings of one run."""
    from grpo_hf.runs.recipe import read_recipe

    return read_recipe(flags, default=HERE / "paradigm_tiny.yaml")


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


@dataclass(frozen=True)
class Start:
    """Start is what all methods of one seed share: base, prompts, reward and settings."""

    folder: Path
    flags: tuple[str, ...]
    # These settings are read once and kept. Creating new training settings resets accelerate's
    # global state, device included, which must not happen while a trainer uses it.
    training: Any
    prompts: Any
    reward: Any
    settings: argparse.Namespace

    @classmethod
    def of(cls, folder: Path, flags: tuple[str, ...], settings: argparse.Namespace) -> "Start":
        """Check the task, and cold-start the embedded base unless there is its checkpoint."""
        from grpo_hf.runs.preflight import check_model, check_task
        from grpo_hf.runs.recipe import EMBEDDED_MODEL
        from grpo_hf.runs.train import cold_started

        recipe = read([*flags, "--output_dir", str(folder / "base")])
        task = check_task(recipe)
        base = recipe.model.model_name_or_path
        if base == EMBEDDED_MODEL:
            base = cold_started(recipe)
        recipe.model.model_name_or_path = base
        # The checkpoint has had its cold start, so the methods must not ask for another one.
        base_flags = ("--model_name_or_path", base, "--cold_start_steps", "0")
        return cls(
            folder,
            (*flags, *base_flags),
            recipe.training,
            check_model(recipe, task),
            task.rewards[0],
            settings,
        )

    def recipe(self, name: str) -> Any:
        """Return the settings of a method's run."""
        recipe = read([*self.flags, "--output_dir", str(self.folder / name), *ONLINE.get(name, ())])
        recipe.training.learning_rate *= RATES.get(name, 1.0)
        return recipe

    def right(self, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[bool]:
        """Return for each completion whether it gets the reward's full mark."""
        from grpo_hf.evaluation.answers import right_answers
        from grpo_hf.scoring.scored_reward import ScoredReward

        return list(map(bool, right_answers(ScoredReward(self.reward), rows, texts)))

    def accuracy(self, model: Any) -> float:
        """Return the share of held-out prompts that the model's greedy completions solve."""
        from grpo_hf.evaluation.answers import greedy_completions

        rows = self.prompts.held_out.to_list()
        answers = greedy_completions(
            model,
            self.prompts.tokenizer,
            prompts_of(rows),
            max_new_tokens=self.training.max_completion_length,
            batch_size=len(rows),
        )
        texts = [answer.completion for answer in answers]
        return mean(self.right(rows, texts))

    def sample(
        self, model: Any, rows: Sequence[dict[str, Any]], count: int, seed: int
    ) -> list[list[tuple[str, bool]]]:
        """Sample `count` completions of each prompt as in training; say which are correct."""
        from grpo_hf.evaluation.answers import sampled_completions
        from grpo_hf.rollout.sampling import sampling_of

        groups = sampled_completions(
            model,
            self.prompts.tokenizer,
            prompts_of(rows),
            count,
            sampling=sampling_of(self.training),
            seed=seed,
            max_new_tokens=self.training.max_completion_length,
            batch_size=PROMPTS,
        )
        # The reward takes one row per completion.
        row_of_text = []
        texts = []
        for row, group in zip(rows, groups, strict=True):
            row_of_text += [row] * count
            texts += group
        judged = zip(texts, self.right(row_of_text, texts), strict=True)
        judged_groups = []
        for _ in rows:
            judged_groups.append(list(islice(judged, count)))
        return judged_groups

    def tokens(self, text: str) -> int:
        """Return the number of tokens of a completion, its end-of-sequence token included."""
        return len(self.prompts.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    def group_tokens(self, group: Sequence[tuple[str, bool]]) -> int:
        """Return the number of tokens of all completions of a group."""
        total = 0
        for text, _ in group:
            total += self.tokens(text)
        return total


def prompts_of(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the prompt of every row."""
    return [row["prompt"] for row in rows]


def run(start: Start, name: str) -> None:
    """Run a method, or evaluate the base, and write the result to a file."""
    begun = time.monotonic()
    # What an interrupted run left here cannot be resumed: its token count is lost.
    shutil.rmtree(start.folder / name, ignore_errors=True)
    print(f"{start.folder.name}: {name}", flush=True)
    result = evaluate_base(start) if name == "base" else train_method(start, name)
    result["seconds"] = time.monotonic() - begun
    file = start.folder / f"{name}.json"
    # A method counts as done when its file exists, so the file must appear only when complete.
    partial_file = file.with_suffix(".partial")
    partial_file.write_text(json.dumps(result), encoding="utf-8")
    partial_file.rename(file)


def evaluate_base(start: Start) -> dict[str, Any]:
    """Return the base's accuracy and its samples for the held-out prompts."""
    from grpo_hf.models.loading import load_base

    model = load_base(start.recipe("base").model)
    return {"accuracy": start.accuracy(model), "sampled": sampled(start, model)}


def train_method(start: Start, name: str) -> dict[str, Any]:
    """Train with one method; return its learning curve and final accuracy."""
    trainer, tokens = online(start, name) if name in ONLINE else offline(start, name)
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


def online(start: Start, name: str) -> tuple[Any, int | None]:
    """Return a trainer that samples during training; None says its token cost is not known yet."""
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
    # One line per step of every run would hide the few lines that this program prints.
    trainer.remove_callback(ProgressLine)
    return trainer, None


def offline(start: Start, name: str) -> tuple[Any, int]:
    """Return a trainer on a fixed set of completions, and the number of tokens that they cost.

    Raises:
        DataError: there is nothing to learn from.
    """
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, get_peft_config

    from grpo_hf.models.loading import load_base

    rows, tokens = demonstrations(start) if name == "sft" else samples_of_base(start, name)
    if not rows:
        raise DataError(
            f"{name}: no sample of the base to learn from. "
            "Give more --cold_start_steps or --budget."
        )
    recipe = start.recipe(name)
    trainer_class = DPOTrainer if name == "dpo" else SFTTrainer
    config_class = DPOConfig if name == "dpo" else SFTConfig
    trainer = trainer_class(
        load_base(recipe.model),
        args=config_class(
            **{setting: getattr(recipe.training, setting) for setting in SHARED_SETTINGS},
            # SFT's rows already fill the budget, repeated if necessary: one epoch spends it.
            num_train_epochs=1 if name == "sft" else start.settings.epochs,
            # The base's samples of one prompt are neighbours in `rows`, so they need shuffling.
            train_sampling_strategy="sequential" if name == "sft" else "random",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=start.prompts.tokenizer,
        peft_config=get_peft_config(recipe.model),
    )
    # Without a progress bar, transformers prints every log as a dictionary.
    trainer.remove_callback(PrinterCallback)
    return trainer, tokens


def demonstrations(start: Start) -> tuple[list[dict[str, Any]], int]:
    """Return gold solutions of the training prompts up to the budget, and their tokens.

    The prompts start again from the first one if all of them together do not fill the budget.
    """
    rows = []
    spent = 0
    for row in cycle(start.prompts.train.to_list()):
        if spent >= start.settings.budget:
            break
        rows.append({"prompt": row["prompt"], "completion": answer(row["prompt"], row["answer"])})
        spent += start.tokens(row["answer"])
    return rows, spent


def samples_of_base(start: Start, name: str) -> tuple[list[dict[str, Any]], int]:
    """Return training rows for RFT or DPO, and the tokens of all samples.

    RFT learns the correct samples; DPO learns pairs of a correct and a wrong sample. Both methods
    would draw the same samples, so the second one reads the file of the first. Both are charged for
    all of the samples.
    """
    file = start.folder / "samples.json"
    if not file.exists():
        file.write_text(json.dumps(list(ask_base(start))), encoding="utf-8")
    rows = []
    spent = 0
    for prompt, group in json.loads(file.read_text(encoding="utf-8")):
        spent += start.group_tokens(group)
        rows += rft_rows(prompt, group) if name == "rft" else dpo_rows(prompt, group)
    return rows, spent


def rft_rows(prompt: Any, group: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
    """Return one row for each correct sample of a group."""
    rows = []
    for text, right in group:
        if right:
            rows.append({"prompt": prompt, "completion": answer(prompt, text)})
    return rows


def dpo_rows(prompt: Any, group: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
    """Return pairs of a correct and a wrong sample of a group; use every sample at most once."""
    correct = []
    wrong = []
    for text, right in group:
        (correct if right else wrong).append(answer(prompt, text))
    rows = []
    # Not strict: the longer list's surplus has no partner.
    for chosen, rejected in zip(correct, wrong, strict=False):
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def ask_base(start: Start) -> Iterator[tuple[Any, list[tuple[str, bool]]]]:
    """Yield training prompts, each with a group of base samples, until the budget is spent."""
    from grpo_hf.models.loading import load_base

    model = load_base(start.recipe("base").model)
    spent = 0
    rows = cycle(start.prompts.train.to_list())
    while spent < start.settings.budget:
        batch = list(islice(rows, PROMPTS))
        # `spent` grows with every batch, so no two batches share a seed. A prompt that comes up
        # again in a later round gets other samples.
        groups = start.sample(
            model, batch, start.training.num_generations, seed=start.training.seed + spent
        )
        for row, group in zip(batch, groups, strict=True):
            # The budget can run out within a batch; the rest of the batch is then not used.
            if spent < start.settings.budget:
                spent += start.group_tokens(group)
                yield row["prompt"], group


def answer(prompt: Any, text: str) -> Any:
    """Return a text in the prompt's format: a list with one message, or a plain string."""
    return [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text


def follow(trainer: Any, start: Start, name: str, tokens: int | None) -> list[dict[str, Any]]:
    """Measure the accuracy during training, and end the training when the budget is spent.

    Args:
        tokens: what the training data cost, or None for a method that samples during training.

    Returns:
        The learning curve: a list with its first point, which grows during training.
    """
    from transformers import TrainerCallback

    curve = LearningCurve(trainer, start, name, tokens)

    class EndWithBudget(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            share = curve.update(args, state, logs)
            control.should_training_stop |= share >= 1

    trainer.add_callback(EndWithBudget())
    return curve.points


class LearningCurve:
    """LearningCurve measures a model's accuracy at equal intervals of its training.

    For a method that samples during training, the progress is the spent share of the budget. For
    the other methods, whose token cost is known before, it is the share of the updates.
    """

    def __init__(self, trainer: Any, start: Start, name: str, tokens: int | None) -> None:
        self.trainer = trainer
        self.start = start
        self.name = name
        self.tokens = tokens
        self.spent = 0.0
        accuracy = start.accuracy(trainer.model)
        point = {"share": 0.0, "updates": 0, "tokens": 0, "seconds": 0.0, "accuracy": accuracy}
        self.points = [point]
        # Of the training, without what the points cost.
        self.seconds = 0.0
        self.measured_at = time.process_time()

    def update(self, args: Any, state: Any, logs: dict[str, Any]) -> float:
        """Count the tokens of a log, add a point if one is due, and return the progress."""
        if self.name in ONLINE:
            # The trainer logs the cost of a rollout under these two names.
            self.spent += logs.get("completions/mean_length", 0.0) * args.generation_batch_size
            self.spent += logs.get("monte_carlo/tokens", 0.0)
        if self.tokens is None:
            share = self.spent / self.start.settings.budget
        else:
            share = state.global_step / state.max_steps
        intervals = self.start.settings.points
        last_share = self.points[-1]["share"]
        # `last_share < 1`: transformers logs once more after the last update, and the curve has its
        # final point by then.
        if int(share * intervals) > int(last_share * intervals) and last_share < 1:
            self.measure(share, state.global_step)
        return share

    def measure(self, share: float, updates: int) -> None:
        """Add a point to the curve and print it."""
        self.seconds += time.process_time() - self.measured_at
        accuracy = self.start.accuracy(self.trainer.model)
        self.measured_at = time.process_time()
        point = {
            # The last rollout may exceed the budget.
            "share": min(share, 1.0),
            "updates": updates,
            "tokens": round(self.tokens or self.spent),
            "seconds": self.seconds,
            "accuracy": accuracy,
        }
        self.points.append(point)
        print(f"  {share:4.0%}  {updates} updates  accuracy {accuracy:.3f}", flush=True)


def read_results(out: Path) -> Results:
    """Read the results of all finished pairs, ordered by method and seed."""
    results: Results = {}
    for name in ("base", *RATES):
        of_seeds = {}
        for file in out.glob(f"seed*/{name}.json"):
            seed = int(file.parent.name.removeprefix("seed"))
            of_seeds[seed] = json.loads(file.read_text(encoding="utf-8"))
        if of_seeds:
            # glob has no fixed order, and sorted by name seed10 would come before seed2.
            results[name] = dict(sorted(of_seeds.items()))
    return results


def interval(values: Sequence[float]) -> str:
    """Return the mean as text, with its 95% interval over seeds if there are several values."""
    text = f"{mean(values):.3f}"
    if len(values) > 1:
        text += f" ± {half_width(values):.3f}"
    return text


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95% interval of a mean by Student's t; 0 for a single value."""
    n = len(values)
    if n < 2:
        return 0.0
    quantile = T_95[n - 2] if n - 2 < len(T_95) else Z_95
    return quantile * stdev(values) / n**0.5


def show(results: Results) -> None:
    """Print the final accuracies, the differences between methods, and the cost of catching up."""
    from rich.console import Console

    final: dict[str, dict[int, float]] = {}
    for name, of_seeds in results.items():
        final[name] = {}
        for seed, result in of_seeds.items():
            final[name][seed] = result["accuracy"]
    console = Console(highlight=False)
    console.print(accuracy_table(results, final))
    for first, second in DIFFERENCES:
        both = sorted(final.get(first, {}).keys() & final.get(second, {}).keys())
        if both:
            # Paired: methods of one seed share a base, and bases differ more than methods do.
            gains = []
            for seed in both:
                gains.append(final[first][seed] - final[second][seed])
            pair = f"{first} − {second}, paired by seed"
            console.print(f"{pair}: {interval(gains)}  ({len(both)} seeds)")
        gains = []
        for seed in both:
            timed = [results[name][seed]["curve"] for name in (first, second)]
            # The other methods also take time before the training, and older results have none.
            if {first, second} <= ONLINE.keys() and all("seconds" in curve[-1] for curve in timed):
                gains.append(at_equal_time(*timed))
        if gains:
            console.print(f"{pair}, at equal processor time: {interval(gains)}")
    for name in ("grpo_process", "grpo_gain"):
        for seed in results.get(name, {}):
            if seed in results.get("grpo", {}):
                console.print(catch_up(results, name, seed))


def accuracy_table(results: Results, final: dict[str, dict[int, float]]) -> Any:
    """Return a table of each method's final accuracy by seed, with its mean updates and tokens."""
    from rich.table import Table

    seeds: list[int] = sorted(set().union(*results.values()))
    table = Table(title="accuracy")
    table.add_column("method")
    for seed in seeds:
        table.add_column(f"seed {seed}")
    for heading in ("mean ± 95%", "updates", "tokens"):
        table.add_column(heading)
    for name, of_seeds in final.items():
        cells = []
        for seed in seeds:
            cells.append(f"{of_seeds[seed]:.3f}" if seed in of_seeds else "")
        cost = mean_cost(results[name]) if name != "base" else ("", "")
        table.add_row(name, *cells, interval(list(of_seeds.values())), *cost)
    return table


def mean_cost(of_seeds: dict[int, dict[str, Any]]) -> tuple[str, str]:
    """Return the mean updates and the mean tokens of a method over its seeds, as text."""
    updates = []
    tokens = []
    for result in of_seeds.values():
        updates.append(result["curve"][-1]["updates"])
        tokens.append(result["curve"][-1]["tokens"])
    return f"{mean(updates):,.0f}", f"{mean(tokens):,.0f}"


def at_equal_time(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> float:
    """Return how far the first curve is ahead when the faster of the two has spent its budget."""
    seconds = min(first[-1]["seconds"], second[-1]["seconds"])
    return at(first, seconds, "seconds") - at(second, seconds, "seconds")


def catch_up(results: Results, name: str, seed: int) -> str:
    """Describe when a method first reached the final accuracy of grpo on the same seed."""
    of_grpo = results["grpo"][seed]
    reached = "not reached"
    for point in results[name][seed]["curve"]:
        if point["accuracy"] >= of_grpo["accuracy"]:
            reached = cost_text(point)
            break
    target = f"grpo's final accuracy ({cost_text(of_grpo['curve'][-1])})"
    return f"seed {seed}: {target} with {name}: {reached}"


def cost_text(point: dict[str, Any]) -> str:
    """Return the updates and tokens of a curve's point as text, and the seconds where known."""
    seconds = f", {point['seconds']:.0f} s" if "seconds" in point else ""
    return f"{point['updates']} updates, {point['tokens']:,} tokens{seconds}"


def draw(results: Results, out: Path) -> None:
    """Draw the counterparts of the paper's figures 5 and 7 into a folder."""
    import matplotlib

    # This backend writes files and needs no display.
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


def write_report(results: Results, out: Path) -> None:
    """Write the methods that sample as they train beside each other, of the first seed on disk."""
    from grpo_hf.runs.finished import report

    runs = []
    for name in ONLINE:
        for seed in sorted(results.get(name, {}))[:1]:
            runs.append(out / f"seed{seed}" / name)
    page = report(*runs, page=out / REPORT_FILE) if runs else None
    if page:
        print(f"report: {page}", flush=True)


def draw_curves(axes: Any, results: Results) -> None:
    """Draw what each method adds to the accuracy of its base during training (figure 5).

    The figure shows gains, not accuracies, because bases differ more than methods do.
    """
    grid = [index / GRID_INTERVALS for index in range(GRID_INTERVALS + 1)]
    for name in RATES:
        if name not in results:
            continue
        gains = []
        for result in results[name].values():
            gains.append(gain_on_grid(result["curve"], grid))
        seeds = "1 seed" if len(gains) == 1 else f"{len(gains)} seeds"
        band(axes, grid, gains, label=f"{name}, {seeds}")
    axes.set(
        xlabel="share of the budget (sft, rft, dpo: of the updates)",
        ylabel="accuracy above the base's, greedy",
    )


def gain_on_grid(curve: Sequence[dict[str, Any]], grid: Sequence[float]) -> list[float]:
    """Return the accuracy above the base's at every share of the training in `grid`."""
    # The first point of a curve is measured before the first update.
    base_accuracy = curve[0]["accuracy"]
    return [at(curve, share) - base_accuracy for share in grid]


def draw_samples(axes: Any, results: Results) -> None:
    """Draw maj@k and pass@k of the base and of the policy after GRPO (figure 7)."""
    for name, color in (("base", "C0"), ("grpo", "C1")):
        if name not in results:
            continue
        of_seeds = list(results[name].values())
        ks = sample_counts(of_seeds[0]["sampled"])
        passed = []
        voted = []
        for result in of_seeds:
            pass_values, maj_values = pass_and_maj(result["sampled"], ks)
            passed.append(pass_values)
            voted.append(maj_values)
        band(axes, ks, passed, label=f"pass@k, {name}", color=color, linestyle="--")
        band(axes, ks, voted, label=f"maj@k, {name}", color=color)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="k samples at the temperature of training", ylabel="accuracy, held-out problems"
    )


def sample_counts(groups: Sequence[Sequence[Any]]) -> list[int]:
    """Return 1, 2, 4, ... up to the smallest group's number of samples, at most `LARGEST_K`."""
    limit = min(min(map(len, groups)), LARGEST_K)
    counts = []
    k = 1
    while k <= limit:
        counts.append(k)
        k *= 2
    return counts


def pass_and_maj(
    groups: Sequence[Sequence[tuple[str, bool]]], ks: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Return pass@k and maj@k of one seed's samples for every k."""
    from grpo_hf.evaluation.statistics import maj_at_k, pass_at_k

    answers = []
    correct = []
    for group in groups:
        texts, marks = zip(*group, strict=True)
        answers.append(texts)
        correct.append(marks)
    pass_values = []
    maj_values = []
    for k in ks:
        pass_values.append(pass_at_k(correct, k))
        maj_values.append(maj_at_k(answers, correct, k))
    return pass_values, maj_values


def band(axes: Any, xs: Sequence[float], of_seeds: Sequence[Sequence[float]], **style: Any) -> None:
    """Draw a line through the means over seeds, inside a band for their 95% interval."""
    means = []
    low = []
    high = []
    for values in zip(*of_seeds, strict=True):
        center = mean(values)
        margin = half_width(values)
        means.append(center)
        low.append(center - margin)
        high.append(center + margin)
    (line,) = axes.plot(xs, means, **style)
    axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.12, linewidth=0)


def at(curve: Sequence[dict[str, Any]], progress: float, by: str = "share") -> float:
    """Return the accuracy at a share of the training, interpolated between measured points.

    Args:
        by: what `progress` counts: `"share"`, or `"seconds"`.
    """
    from numpy import interp

    places = []
    accuracies = []
    for point in curve:
        places.append(point[by])
        accuracies.append(point["accuracy"])
    return float(interp(progress, places, accuracies))


if __name__ == "__main__":
    main(sys.argv[1:])
