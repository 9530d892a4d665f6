"""Whole runs of recipes: evaluations during the training, and what rewards see of the data."""

import json

import pytest
import yaml
from support.chats import SHAPES, USER

from grpo_hf.reporting.metrics_file import METRICS_FILE
from grpo_hf.runs.recipe import read_recipe
from grpo_hf.runs.train import train

# It notes what it sees, and pays for the length.
REWARD = """
import json

def seen(completions, prompts, **columns):
    known = {name: columns.get(name) for name in ("solution", "tools", "messages")}
    with open(__file__ + ".seen", "a") as file:
        for index, prompt in enumerate(prompts):
            row = {name: values and values[index] for name, values in known.items()}
            file.write(json.dumps({"prompt": prompt, **row}) + "\\n")
    return [float(len(str(completion))) for completion in completions]
"""


@pytest.fixture
def make(tmp_path, tiny_checkpoint):
    """A recipe on splits that are given, with short settings."""
    (tmp_path / "noting.py").write_text(REWARD)

    def recipe(splits, **settings):
        data = tmp_path / "data"
        data.mkdir()
        for name, rows in splits.items():
            (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        short = {
            "model_name_or_path": str(tiny_checkpoint),
            "lora_target_modules": "all-linear",
            "dataset_path": str(data),
            "rewards": ["./noting.py:seen"],
            "output_dir": str(tmp_path / "run"),
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "max_completion_length": 8,
            "max_steps": 2,
            "logging_steps": 1,
            "eval_rows": 0,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": "none",
            "reward_workers": 0,
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(short | settings))
        return read_recipe(["--config", str(file)])

    return recipe


def test_evaluations_during_the_training(make, tmp_path, capsys):
    splits = {
        "train": [{"prompt": f"train {number}"} for number in range(8)],
        "test": [{"prompt": f"test {number}"} for number in range(5)],
    }
    recipe = make(
        splits,
        eval_rows=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
    )
    comparison = train(recipe)
    assert comparison is not None and comparison.base.total == 3
    rows = list(map(json.loads, (tmp_path / "run" / METRICS_FILE).read_text().splitlines()))
    rewards = {row["step"]: row["eval_reward"] for row in rows if "eval_reward" in row}
    assert list(rewards) == [1, 2]
    said = capsys.readouterr().out
    for step, reward in rewards.items():
        assert f"evaluation at step {step}  reward {reward:.3f}  seen " in said
    assert "step 2/2" in said
    asked = [json.loads(line)["prompt"][0]["content"] for line in seen_lines(tmp_path)]
    # The first three rows of the test split, as in the comparison at the end.
    assert {prompt for prompt in asked if prompt.startswith("test")} == {
        "test 0",
        "test 1",
        "test 2",
    }


def seen_lines(folder):
    return (folder / "noting.py.seen").read_text().splitlines()


@pytest.mark.parametrize("shape", ["user", "beginning"])
def test_without_a_strategy_nothing_is_evaluated_in_between(make, tmp_path, shape):
    recipe = make(
        {"train": [{"prompt": SHAPES[shape]}] * 4, "test": [{"prompt": [USER]}]}, eval_rows=1
    )
    assert train(recipe).base.total == 1
    assert "eval_reward" not in (tmp_path / "run" / METRICS_FILE).read_text()
