"""Evaluations of a trainer around and during the training; the best checkpoint by reward."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict, load_peft_weights

pytestmark = pytest.mark.long


def rows(count: int) -> Dataset:
    return Dataset.from_list([{"prompt": f"{a} + {a} = "} for a in range(count)])


def even_characters(completions, **columns):
    return [sum(ord(letter) % 2 == 0 for letter in text) / 8 for text in completions]


def test_the_best_checkpoint_by_reward_is_loaded_at_the_end(make_trainer, tmp_path: Path):
    trainer = make_trainer(
        reward_funcs=even_characters,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        eval_dataset=rows(3),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        learning_rate=3e-2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        per_device_eval_batch_size=4,
    )
    trainer.train()
    evaluated = {}
    for entry in trainer.state.log_history:
        if "eval_reward" in entry:
            evaluated[entry["step"]] = entry["eval_reward"]
    assert list(evaluated) == [1, 2, 3] and len(set(evaluated.values())) > 1
    best = max(evaluated, key=evaluated.get)
    assert trainer.state.best_metric == evaluated[best]
    folder = Path(trainer.state.best_model_checkpoint)
    assert folder.name == f"checkpoint-{best}"
    found = get_peft_model_state_dict(trainer.model)
    for name, weight in load_peft_weights(str(folder), device="cpu").items():
        assert weight.equal(found[name]), name
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert [row["eval_reward"] for row in written if "eval_reward" in row] == [*evaluated.values()]


def test_several_evaluation_sets(make_trainer):
    sets = {"easy": rows(2), "hard": rows(3)}
    trainer = make_trainer(eval_dataset=sets, per_device_eval_batch_size=4)
    before = trainer.evaluate()
    assert {"eval_easy_loss", "eval_hard_loss"} <= {*before}
    assert trainer.train().global_step == 2
