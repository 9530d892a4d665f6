"""The end of a run: base against adapter in one table, the answers behind it on disk, and the curve of its rewards."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from . import evaluation, roles
from .errors import DataError
from .progress import METRICS_FILE, read_metrics
from .scoring import ScoredReward

if TYPE_CHECKING:
    from .plugins import Reward
    from .trainer import GRPOTrainer

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.jsonl"


def not_comparable(trainer: "GRPOTrainer") -> str | None:
    """Why base and adapter cannot be compared at the end of this run, or None."""
    if not hasattr(trainer.model, "peft_config"):
        return "the whole model was trained, and the base is gone."
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "the weights are sharded; load base and adapter on one device for it."
    return None


def compare_with_base(trainer: "GRPOTrainer", held_out: Any, reward: "Reward") -> evaluation.Comparison | None:
    """Answer the held-out prompts greedily with and without the adapter, and keep both answers in evaluation.jsonl.

    Prompts on which the reward failed are left out; None where none is left.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    rows = held_out.to_list()
    options: dict[str, Any] = {
        "max_new_tokens": trainer.max_completion_length,
        "template_options": trainer.chat_template_kwargs,
        "batch_size": max(trainer.args.per_device_eval_batch_size, trainer.args.per_device_train_batch_size),
    }
    prompts = [row["prompt"] for row in rows]
    tokenizer = trainer.processing_class
    answers = {"adapter": evaluation.greedy_completions(model, tokenizer, prompts, **options)}
    with roles.as_base(model):
        answers["base"] = evaluation.greedy_completions(model, tokenizer, prompts, **options)
    ours = (entry for entry in trainer.reward_funcs if isinstance(entry, ScoredReward) and entry.reward is reward)
    scored = next(ours, None) or ScoredReward(reward)
    right = {}
    for name, texts in answers.items():
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        right[name] = evaluation.right_answers(scored, rows, texts, completion_ids=ids, trainer_state=trainer.state)
    if trainer.is_world_process_zero():
        with (Path(trainer.args.output_dir) / EVALUATION_FILE).open("w", encoding="utf-8") as file:
            for index, row in enumerate(rows):
                record = {name: {"answer": answers[name][index], "right": right[name][index]} for name in answers}
                file.write(json.dumps({"prompt": row["prompt"], **record}, ensure_ascii=False) + "\n")
    pairs = list(zip(right["base"], right["adapter"], strict=True))
    judged = [(base, adapter) for base, adapter in pairs if base is not None and adapter is not None]
    if len(judged) < len(pairs):
        logger.warning(f"The reward failed on {len(pairs) - len(judged)} of {len(pairs)} prompts, which are left out.")
    if not judged:
        return None
    return evaluation.compare([base for base, _ in judged], [adapter for _, adapter in judged])


def show(
    comparison: evaluation.Comparison | None,
    trainer: "GRPOTrainer",
    reward: "Reward",
    console: Console | None = None,
) -> None:
    """Print the comparison and where everything lies."""
    console = console or Console(highlight=False)
    folder = trainer.args.output_dir
    if comparison is not None:
        title = f"accuracy on {comparison.base.total} held-out prompts, greedy; right: full mark of {reward.name}"
        table = Table(title=title)
        for column in ("model", "right", "accuracy", "95% interval"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, share in (("base (adapter disabled)", comparison.base), ("adapter", comparison.adapter)):
            interval = f"{share.low:.3f} to {share.high:.3f}"
            table.add_row(name, f"{share.right}/{share.total}", f"{share.value:.3f}", interval)
        interval = f"{comparison.low:+.3f} to {comparison.high:+.3f}"
        table.add_row("difference (paired)", "", f"{comparison.difference:+.3f}", interval, style="bold")
        console.print(table)
        if {comparison.base.right, comparison.adapter.right} in ({0}, {comparison.base.total}):
            console.print(
                f"note: {reward.name} gives its full mark, 1.0, to all answers or to none, so this says nothing. Name "
                "another reward: --eval_reward NAME."
            )
    console.print(f"model:   {folder}", soft_wrap=True, markup=False)
    console.print(f"log:     {folder}/{METRICS_FILE}", soft_wrap=True, markup=False)
    if comparison is not None:
        console.print(f"answers: {folder}/{EVALUATION_FILE}", soft_wrap=True, markup=False)


def plot_rewards(run: Path, picture: Path) -> None:
    """Draw every reward's mean over the steps of a run, with KL below, as a PNG or SVG.

    Raises:
        ImportError: matplotlib is missing (`pip install 'grpo-hf[plot]'`).
        DataError: the run has not logged a step yet.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(run)
    if not rows:
        raise DataError(f"{run}: {METRICS_FILE} has no training step yet. Draw it once the run has logged one.")
    steps = [row["step"] for row in rows]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), height_ratios=(3, 1))
    for key in [key for key in rows[0] if key.startswith("rewards/") and key.endswith("/mean")]:
        above.plot(steps, [row.get(key) for row in rows], marker=".", label=key.split("/")[1])
    above.set_ylabel("mean reward")
    above.legend()
    below.plot(steps, [row.get("kl") for row in rows], color="grey")
    below.set_ylabel("KL")
    below.set_xlabel("step")
    below.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
