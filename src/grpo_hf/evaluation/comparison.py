"""Base against adapter on the same held-out prompts, and the answers of both on disk."""

import json
import logging
from pathlib import Path
from typing import Any

from ..models import adapters
from ..scoring.scorer import ScoredReward
from . import answers as evaluation
from . import statistics

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.jsonl"


def not_comparable(trainer: Any) -> str | None:
    """Why base and adapter cannot be compared at the end of this run, or None."""
    if not hasattr(trainer.model, "peft_config"):
        return "the whole model was trained, and the base is gone."
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "the weights are sharded; load base and adapter on one device for it."
    return None


def compare_with_base(trainer: Any, held_out: Any, reward: Any) -> statistics.Comparison | None:
    """Answer the held-out prompts greedily with and without the adapter, and keep both answers in answers.jsonl.

    Prompts on which the reward failed are left out; None where none is left.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    rows = held_out.to_list()
    options: dict[str, Any] = {
        "max_new_tokens": trainer.max_completion_length,
        "template_options": trainer.chat_template_kwargs,
        "batch_size": max(
            trainer.args.per_device_eval_batch_size, trainer.args.per_device_train_batch_size
        ),
    }
    prompts = [row["prompt"] for row in rows]
    tokenizer = trainer.processing_class
    answers = {"adapter": evaluation.greedy_completions(model, tokenizer, prompts, **options)}
    with adapters.as_base(model):
        answers["base"] = evaluation.greedy_completions(model, tokenizer, prompts, **options)
    ours = (
        entry
        for entry in trainer.reward_funcs
        if isinstance(entry, ScoredReward) and entry.reward is reward
    )
    scored = next(ours, None) or ScoredReward(reward)
    right = {}
    for name, texts in answers.items():
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        right[name] = evaluation.right_answers(
            scored, rows, texts, completion_ids=ids, trainer_state=trainer.state
        )
    if trainer.is_world_process_zero():
        with (Path(trainer.args.output_dir) / EVALUATION_FILE).open("w", encoding="utf-8") as file:
            for index, row in enumerate(rows):
                record = {
                    name: {"answer": answers[name][index], "right": right[name][index]}
                    for name in answers
                }
                file.write(
                    json.dumps({"prompt": row["prompt"], **record}, ensure_ascii=False) + "\n"
                )
    pairs = list(zip(right["base"], right["adapter"], strict=True))
    judged = [
        (base, adapter) for base, adapter in pairs if base is not None and adapter is not None
    ]
    if len(judged) < len(pairs):
        logger.warning(
            f"The reward failed on {len(pairs) - len(judged)} of {len(pairs)} prompts, which are left out."
        )
    if not judged:
        return None
    return statistics.compare([base for base, _ in judged], [adapter for _, adapter in judged])
