"""The model card: what a run was, written from the run itself, beside its adapter and on the Hub."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

if TYPE_CHECKING:
    from ..trainer import GRPOTrainer

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
_CITATION = """@article{shao2024deepseekmath,
  title  = {DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models},
  author = {Shao, Zhihong and Wang, Peiyi and Zhu, Qihao and Xu, Runxin and Song, Junxiao and others},
  year   = 2024,
  eprint = {arXiv:2402.03300}
}"""


def write_model_card(
    trainer: "GRPOTrainer",
    *,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: Any = None,
) -> None:
    """Write the card of a run as `README.md` in its output folder; names of local folders stay out of it."""
    base = public_name(trainer.model.config._name_or_path) or "unnamed model"
    data = public_name(dataset_name or trainer.dataset_source)
    extra = [tags] if isinstance(tags, str) else list(tags or ())
    card_data = ModelCardData(
        base_model=next(iter(_hub_names(base)), None),
        datasets=_hub_names(data) or None,
        library_name="peft" if hasattr(trainer.model, "peft_config") else "transformers",
        pipeline_tag="text-generation",
        tags=sorted({"grpo", "grpo-hf", "trl", *extra}),
    )
    name = model_name or Path(trainer.args.output_dir).name
    text = "\n\n".join(
        [
            f"# {name}",
            f"Trained from {_code(base)} on {_code(data)} with Group Relative Policy Optimization "
            "([DeepSeekMath](https://arxiv.org/abs/2402.03300)).",
            "## Rewards\n\n" + _table(("reward", "weight"), _rewards(trainer)),
            "## Objective\n\n" + _objective(trainer.args),
            "## Hyperparameters\n\n" + _table(("setting", "value"), _hyperparameters(trainer)),
            *_results(trainer.results),
            f"## Citation\n\n```bibtex\n{_CITATION}\n```",
        ]
    )
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")


def public_name(name: str) -> str:
    """A name fit for a public card: a local path keeps only its last part.

    >>> public_name("/home/me/models/llama"), public_name("org/llama")
    ('llama', 'org/llama')
    """
    is_path = (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
        or os.path.exists(name)
    )
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def _hub_names(name: str) -> list[str]:
    """The `org/name` of a Hub repository, without the split that may follow it; empty for anything else."""
    return re.findall(r"^[\w.-]+/[\w.-]+(?= \(|$)", name)


def _rewards(trainer: "GRPOTrainer") -> list[tuple[str, str]]:
    weights = trainer.reward_weights.tolist()
    specs = [
        getattr(getattr(function, "reward", None), "spec", name)
        for function, name in zip(trainer.reward_funcs, trainer.reward_func_names, strict=True)
    ]
    shown = [
        re.sub(r"^.*?([^/\\]+\.py:)", r"\1", spec) for spec in specs
    ]  # a reward's file, without its folder
    return [(_code(spec), f"{weight:g}") for spec, weight in zip(shown, weights, strict=True)]


def _objective(args: Any) -> str:
    target, every = (getattr(args, name, None) for name in ("target_kl", "reference_reset_every"))
    parts = [
        f"loss `{args.loss_type}`",
        f"KL coefficient β = {args.beta:g}"
        + (f", steered to a KL of {target:g}" if target else ""),
        f"advantages scaled by {_code(str(args.scale_rewards))}",
        f"importance ratio per {args.importance_sampling_level}",
    ]
    if args.beta and getattr(args, "reference", None):
        parts.append(
            f"reference `{args.reference}`"
            + (f", the policy anew every {every} steps" if every else "")
        )
    return ", ".join(parts) + "."


def _hyperparameters(trainer: "GRPOTrainer") -> list[tuple[str, str]]:
    rows = [(name, getattr(trainer.args, name, None)) for name in _HYPERPARAMETERS]
    lora = getattr(trainer.model, "peft_config", {}).get("default")
    rows += (
        [(f"lora_{key}", getattr(lora, key, None)) for key in ("r", "lora_alpha", "lora_dropout")]
        if lora
        else []
    )
    rows.append(("optimizer steps", trainer.state.global_step))
    return [
        (f"`{name.replace('lora_lora', 'lora')}`", _value(value))
        for name, value in rows
        if value is not None
    ]


def _results(results: dict[str, Any]) -> list[str]:
    if not results:
        return []
    rows = [
        (name, f"{r['right'] / r['total']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}")
        for name, r in (("base", results["base"]), ("with this adapter", results["adapter"]))
    ]
    interval = f"{results['low']:+.3f} to {results['high']:+.3f}"
    rows.append(("difference (paired)", f"{results['difference']:+.3f}", interval))
    caption = f"Accuracy on {results['base']['total']} held-out prompts, greedy decoding."
    return [f"## Results\n\n{caption}\n\n" + _table(("model", "accuracy", "95% interval"), rows)]


def _table(header: tuple[str, ...], rows: list[Any]) -> str:
    escaped = [
        [cell.replace("|", "\\|") for cell in cells]
        for cells in [header, ("---",) * len(header), *rows]
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in escaped)


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))


def _code(text: str) -> str:
    return f"`{text}`"
