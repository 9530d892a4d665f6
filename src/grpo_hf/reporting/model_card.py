"""The model card of a run: written from the run itself, beside its adapter and for the Hub."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..run_context import CardFacts
from ..run_files import write_or_say
from .public_names import public_name, public_text

# What a reader needs to repeat the run, of more than a hundred settings.
_HYPERPARAMETERS = (
    "num_generations",
    "num_iterations",
    "epsilon",
    "epsilon_high",
    "temperature",
    "max_completion_length",
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "num_train_epochs",
    "bf16",
    "seed",
)
# As a card shows them, and as PEFT calls them.
_LORA_SETTINGS = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
_CITATION = """@article{shao2024deepseekmath,
  title  = {DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models},
  author = {Shao, Zhihong and Wang, Peiyi and Zhu, Qihao and Xu, Runxin and \
Song, Junxiao and others},
  year   = 2024,
  eprint = {arXiv:2402.03300}
}"""


def write_model_card(
    folder: Path,
    facts: CardFacts,
    args: Any,
    results: dict[str, Any],
    model_name: str | None = None,
    tags: Any = None,
) -> None:
    """Write the card of a run as `README.md`; names of local folders stay out of it.

    A card that cannot be written is said once, as it ends no run.

    Args:
        folder: the output folder of the run.
        facts: what was trained on what, and for which rewards.
        args: settings of the run.
        results: base against adapter, as `Comparison.as_dict` has it; empty before that is known.
        model_name: the title; by default the folder's name.
        tags: more tags for the Hub, one or a list.
    """
    base = public_name(facts.base) or "unnamed model"
    data = public_name(facts.dataset)
    extra = [tags] if isinstance(tags, str) else list(tags or ())
    # The Hub links base and data where they are repositories, and refuses other names.
    card_data = ModelCardData(
        base_model=next(iter(_hub_names(base)), None),
        datasets=_hub_names(data) or None,
        library_name="peft" if facts.has_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=sorted({"grpo", "grpo-hf", "trl", *extra}),
    )
    sections = [
        f"# {model_name or folder.name}",
        f"Trained from {_code(base)} on {_code(data)} with Group Relative Policy Optimization "
        "([DeepSeekMath](https://arxiv.org/abs/2402.03300)).",
        "## Rewards\n\n" + _table(("reward", "weight"), _rewards(facts)),
        "## Objective\n\n" + _objective(args),
        "## Hyperparameters\n\n" + _table(("setting", "value"), _hyperparameters(facts, args)),
        *_results(results),
        f"## Citation\n\n```bibtex\n{_CITATION}\n```",
    ]
    text = "\n\n".join(sections)
    card = ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{text}\n")
    write_or_say(folder / "README.md", str(card))


def _hub_names(name: str) -> list[str]:
    """Return the `org/name` of a Hub repository, without the split that may follow it.

    Returns:
        One name, or none where this is no repository.
    """
    return re.findall(r"^[\w.-]+/[\w.-]+(?= \(|$)", name)


def _rewards(facts: CardFacts) -> list[tuple[str, str]]:
    rows = []
    for spec, weight in facts.rewards:
        rows.append((_code(public_text(spec)), f"{weight:g}"))
    return rows


def _objective(args: Any) -> str:
    target_kl = getattr(args, "target_kl", None)
    reset_every = getattr(args, "reference_reset_every", None)
    kl = f"KL coefficient β = {args.beta:g}"
    if target_kl:
        kl += f", steered to a KL of {target_kl:g}"
    parts = [
        f"loss `{args.loss_type}`",
        kl,
        f"advantages scaled by {_code(str(args.scale_rewards))}",
        f"importance ratio per {args.importance_sampling_level}",
    ]
    if args.beta and getattr(args, "reference", None):
        reference = f"reference `{args.reference}`"
        if reset_every:
            reference += f", the policy anew every {reset_every} steps"
        parts.append(reference)
    return ", ".join(parts) + "."


def _hyperparameters(facts: CardFacts, args: Any) -> list[tuple[str, str]]:
    values = {}
    for name in _HYPERPARAMETERS:
        # A subclass of the configuration may lack one.
        values[name] = getattr(args, name, None)
    if facts.adapter is not None:
        for shown, name in _LORA_SETTINGS.items():
            values[shown] = getattr(facts.adapter, name, None)
    values["optimizer steps"] = facts.steps
    rows = []
    for name, value in values.items():
        if value is not None:
            rows.append((_code(name), _value(value)))
    return rows


def _results(results: dict[str, Any]) -> list[str]:
    if not results:
        return []
    rows = []
    # Interval and paired difference: with few prompts two accuracies alone say little.
    for name, share in (("base", results["base"]), ("with this adapter", results["adapter"])):
        accuracy = f"{share['right'] / share['total']:.3f}"
        rows.append((name, accuracy, f"{share['low']:.3f} to {share['high']:.3f}"))
    interval = f"{results['low']:+.3f} to {results['high']:+.3f}"
    rows.append(("difference (paired)", f"{results['difference']:+.3f}", interval))
    caption = f"Accuracy on {results['base']['total']} held-out prompts, greedy decoding."
    table = _table(("model", "accuracy", "95% interval"), rows)
    return [f"## Results\n\n{caption}\n\n{table}"]


def _table(header: tuple[str, ...], rows: list[Any]) -> str:
    lines = []
    for cells in [header, ("---",) * len(header), *rows]:
        # A bar in a cell would begin the next cell.
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append("| " + " | ".join(escaped) + " |")
    return "\n".join(lines)


def _value(value: Any) -> str:
    # Settings such as the schedule are enumerations, whose value is the word that a user types.
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))


def _code(text: str) -> str:
    return f"`{text}`"
