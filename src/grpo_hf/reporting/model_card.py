"""The model card of a run: written from the run itself, beside its adapter and for the Hub.

What the trainer knows is kept in a file of facts. So the card can be written anew without a model,
when an evaluation, a report or findings have joined the run.
"""

import hashlib
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data.overlap_text import overlap_text
from ..evaluation.cut_answers import ANSWERS_THAT_END
from ..evaluation.telling import cannot_tell
from ..run_files import GAMING_FILE, say, write_or_say
from .card_code import code, example_prompt
from .card_tables import (
    answer_lines,
    evaluation_notes,
    evaluation_results,
    evaluation_rows,
    evaluations_of,
    result_rows,
    table,
)
from .failed_rewards import why_completions_were_left_out
from .headings import Heading, heading_of
from .nothing_learned import why_nothing_was_learned
from .public_names import hub_base, hub_names, license_of, own_weights, public_name, public_text

if TYPE_CHECKING:
    from ..run_context import CardFacts

CARD_FILE = ".card.json"

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
_PACKAGES = ("trl", "transformers", "peft", "accelerate", "torch", "datasets")
_CARD = "README.md"


def write_model_card(
    folder: Path,
    facts: "CardFacts",
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
        results: base against adapter, as `Comparison.as_dict` has it, and what counted as right;
            empty before that is known.
        model_name: the title; by default the repository's name, or the folder's.
        tags: more tags for the Hub, one or a list.
    """
    base = public_name(facts.base) or "unnamed model"
    options = dict(getattr(args, "chat_template_kwargs", None) or {})
    prompt, rendered = example_prompt(facts.prompt_form, facts.tokenizer, options)
    begins_answers = bool(options.pop("continue_final_message", False))
    card = {
        "title": model_name or (facts.repo or folder.name).split("/")[-1],
        "repo": facts.repo,
        "tags": [tags] if isinstance(tags, str) else list(tags or ()),
        "base": base,
        "base_model": hub_base(facts.base),
        "own_weights": own_weights(facts.base),
        "base_is_folder": os.path.isdir(facts.base),
        "license": license_of(facts.base),
        "data": public_name(facts.dataset),
        "has_adapter": facts.has_adapter,
        "rewards": _rewards(facts),
        "prompt": prompt,
        "rendered": rendered if facts.tokenizer is not None else "",
        "system_prompt": getattr(facts.prompt_form, "system_prompt", None),
        "instruction": getattr(facts.prompt_form, "instruction", None),
        "template_options": options,
        "begins_answers": begins_answers,
        "max_new_tokens": args.max_completion_length or 256,
        "objective": _objective(args),
        "settings": _hyperparameters(facts, args),
        "versions": _versions(),
        "results": results,
    }
    _write(folder, card)


def refresh_card(
    folder: Path,
    *,
    repo: str | None = None,
    find_license: Callable[[str], str | None] | None = None,
) -> None:
    """Write the card of a run anew, with what is in its folder by now.

    A card that somebody has edited stays, which is said. A folder without the facts of a run, such
    as that of an older one, stays as it is.

    Args:
        folder: the output folder of the run.
        repo: the repository that it is pushed to.
        find_license: returns the licence of a model on the Hub.
    """
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    written = card.pop("sha256", None)
    there = folder / _CARD
    if there.is_file() and _digest(_as_text(there)) != written:
        say(f"note: {there} was edited, and stays as it is.")
        return
    if repo is not None:
        card |= {"repo": repo, "title": repo.split("/")[-1]}
    if find_license is not None and card["base_model"] and not card["license"]:
        card["license"] = find_license(card["base_model"])
    _write(folder, card)


def _write(folder: Path, card: dict[str, Any]) -> None:
    text = _text(folder, card)
    # The facts last: a card without them counts as edited, and is never written over.
    write_or_say(folder / _CARD, text)
    facts = card | {"sha256": _digest(text)}
    write_or_say(folder / CARD_FILE, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _as_text(file: Path) -> str:
    # Whoever edits a card may save it in another encoding.
    return file.read_text(encoding="utf-8", errors="replace")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _text(folder: Path, card: dict[str, Any]) -> str:
    """Return the card with its metadata."""
    evaluations = evaluations_of(folder)
    base_model, datasets = card["base_model"], hub_names(card["data"])
    # The Hub links base and data where they are repositories, and refuses other names.
    found = evaluation_results(card, evaluations, (datasets or [card["data"]])[0])
    data = ModelCardData(
        base_model=base_model,
        datasets=datasets or None,
        license=card["license"],
        library_name="peft" if card["has_adapter"] else "transformers",
        pipeline_tag="text-generation",
        tags=sorted({"grpo", "grpo-hf", "trl", *card["tags"]}),
        model_name=card["title"] if found else None,
        eval_results=[EvalResult(**each) for each in found] or None,
    )
    environment = Environment(
        loader=PackageLoader("grpo_hf.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"quoted": _quoted, "fenced": _fenced}
    results = card["results"]
    text = environment.get_template("model_card.md.jinja").render(
        card
        | {
            "adapter": card["has_adapter"],
            # The facts of an older run have not noted it.
            "begins_answers": card.get("begins_answers", False),
            "base_link": _linked(card["base"], base_model, ""),
            "data_link": _linked(card["data"], next(iter(datasets), None), "datasets/"),
            "project_link": _project_link(),
            "code": code(card),
            "means": results.get("means"),
            "eval_reward": results.get("reward"),
            "results_rows": result_rows(results),
            "results_caption": _caption(results),
            "evaluation_rows": evaluation_rows(evaluations, results),
            "evaluation_notes": evaluation_notes(evaluations),
            "curves": _curves(folder),
            "limits": answer_lines(results, evaluations) + _limits(folder, card),
            "citation": _CITATION,
            "table": table,
        }
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def _caption(results: dict[str, Any]) -> str:
    if not results:
        return ""
    total = results["base"]["total"]
    overlap = overlap_text(results.get("in_training"), total)
    shares = [results[side]["right"] / total for side in ("base", "adapter")]
    alike = cannot_tell(shares[0], shares[1], "The reward")
    said = [f"Accuracy on {total} held-out prompts, greedy decoding.", alike, overlap]
    return " ".join(each for each in said if each is not None)


def _limits(folder: Path, card: dict[str, Any]) -> list[str]:
    """Return what a reader should doubt: what a run's own watch found, and what is always so."""
    other_weights = _other_weights(card)
    limits = [other_weights] if other_weights else []
    try:
        findings = json.loads((folder / GAMING_FILE).read_text(encoding="utf-8"))
        for finding in findings:
            if finding.get("name") != ANSWERS_THAT_END:
                limits.append(" ".join(str(finding["text"]).split()))
    except (OSError, ValueError, KeyError, TypeError):
        # A run without findings, or one that was not watched.
        pass
    # It imports transformers, which takes seconds.
    from .metrics_file import read_metrics

    steps = read_metrics(folder)
    limits.extend(why_completions_were_left_out(steps))
    nothing = why_nothing_was_learned(steps)
    if nothing:
        limits.append(nothing)
    if not card["results"]:
        limits.append("It was not compared with its base.")
    elif card["results"]["low"] <= 0 <= card["results"]["high"]:
        limits.append(
            "The interval of the difference from the base includes 0: it may be no better."
        )
    limits.append(
        "It was trained for the rewards above alone. What they do not see was not trained, and may "
        "have become worse."
    )
    limits.append("It has the limits and biases of its base.")
    return limits


def other_weights(folder: Path) -> str | None:
    """Return a sentence on a run whose base is not the one that its adapter names on the Hub."""
    try:
        return _other_weights(json.loads((folder / CARD_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        # The facts of a run, which an older one has not, or others.
        return None


def _other_weights(card: dict[str, Any]) -> str | None:
    says = card.get("own_weights")
    if says is None:
        return None
    measured = " and measured" if card["results"] else ""
    stop = "" if says.endswith((".", "!", "?")) else "."
    said = f'which says of itself: "{says}"{stop}' if says else "made from a model of the Hub."
    sentence = f"It was trained{measured} on the weights of a local folder, {_code(card['base'])}"
    sentence += f", {said}"
    # A whole model comes with its own.
    if card["has_adapter"]:
        sentence += f" On {card['base_model']} itself it was not measured."
    return sentence


def _linked(name: str, hub_name: str | None, kind: str) -> str:
    """Return a name in code, with a link to what the Hub has of it."""
    if hub_name is None:
        return _code(name)
    link = f"[{hub_name}](https://huggingface.co/{kind}{hub_name})"
    return link if hub_name == name else f"{_code(name)} ({link})"


def _project_link() -> str:
    """Return the name of this library, with a link where its package has one."""
    try:
        urls = metadata.metadata("grpo-hf").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        urls = []
    for entry in urls:
        return f"[grpo-hf]({entry.partition(', ')[2]})"
    return "grpo-hf"


def _versions() -> str:
    versions = []
    for package in ("grpo-hf", *_PACKAGES):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            # A source tree that was put on the path.
            continue
    return ", ".join(versions)


def _rewards(facts: "CardFacts") -> list[tuple[str, str, str]]:
    rows = []
    for spec, weight in facts.rewards:
        purpose = facts.purposes.get(spec, "")
        rows.append((_code(public_text(spec)), f"{weight:g}", purpose))
    return rows


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _fenced(text: str) -> str:
    """Return a text as a block of code, whatever fences it holds itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _curves(folder: Path) -> list[tuple[str, Heading]]:
    """Return the pictures of a run with their headings, in the order of its page."""
    pictures = sorted(f"report/{file.name}" for file in folder.glob("report/*.png"))
    headings = {picture: heading_of(picture) for picture in pictures}
    ordered = sorted(pictures, key=lambda picture: headings[picture][0])
    return [(picture, headings[picture][1]) for picture in ordered]


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


def _hyperparameters(facts: "CardFacts", args: Any) -> list[tuple[str, str]]:
    values = {}
    for name in _HYPERPARAMETERS:
        # A subclass of the configuration may lack one.
        values[name] = getattr(args, name, None)
    if facts.adapter is not None:
        for shown, name in _LORA_SETTINGS.items():
            values[shown] = getattr(facts.adapter, name, None)
    # transformers takes the number of steps where both are there.
    unused = "num_train_epochs" if getattr(args, "max_steps", -1) > 0 else "max_steps"
    values.pop(unused, None)
    values["optimizer steps"] = facts.steps
    rows = []
    for name, value in values.items():
        if value is not None:
            rows.append((_code(name), _value(value)))
    return rows


def _value(value: Any) -> str:
    # Settings such as the schedule are enumerations, whose value is the word that a user types.
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))


def _code(text: str) -> str:
    return f"`{text}`"
