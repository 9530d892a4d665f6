"""recipes/r1.py: its stages on the embedded model with a step each, and what a second run finds done."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from support.programs import RECIPES, load_recipe

from grpo_hf.rewards.language import language
from grpo_hf.rewards.math import math
from grpo_hf.rewards.think_format import think_format

STAGES = ("cold_start", "rl", "samples", "sft", "rl_again")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("r1")


def test_worked_problems_take_r1_s_form(recipe: ModuleType) -> None:
    gsm8k = recipe.in_r1_form("She has 2*3=<<2*3=6>>6 eggs.\n#### 6")
    assert gsm8k == "<think>She has 2*3=6 eggs.</think><answer>6</answer>"
    embedded = "30 + 40 = 70\n5 + 9 = 14\n70 + 14 = 84\n#### 84"
    forms = [recipe.in_r1_form(embedded, number=number) for number in range(3)]
    assert forms[0] == (
        "<think>First 30 + 40 = 70, then 5 + 9 = 14, so together 70 + 14 = 84.</think><answer>84</answer>"
    )
    assert think_format(forms) == [1.0] * 3 and math(forms, answer=[embedded] * 3) == [1.0] * 3
    assert language(forms) == [1.0, 1.0, 0.0] and language(forms, language="de") == [0.0, 0.0, 1.0]


def test_stages_follow_each_other_and_a_finished_one_is_kept(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lenient.py").write_text(
        "def lenient(completions, **_):\n    return [1.0 for _ in completions]\n"
    )
    flags = [
        "--config",
        str(RECIPES / "r1_tiny.yaml"),
        "--output_dir",
        str(tmp_path / "run"),
        "--cold_start_steps",
        "2",
    ]
    flags += [
        "--max_steps",
        "1",
        "--logging_steps",
        "1",
        "--eval_rows",
        "6",
        "--max_completion_length",
        "8",
    ]
    flags += [
        "--per_device_train_batch_size",
        "8",
        "--sample_prompts",
        "4",
        "--samples_per_prompt",
        "2",
    ]
    flags += [
        "--rewards",
        f"{tmp_path}/lenient.py:lenient",
        "think_format",
        "--reward_weights",
        "1",
        "0.2",
    ]
    with pytest.raises(SystemExit):  # an untrained model has no sample in the form
        recipe.main(flags)
    said = capsys.readouterr()
    assert "no sample has the full mark of every reward" in said.err
    assert [stage for stage in STAGES if (tmp_path / "run" / stage / recipe.FINISHED).exists()] == [
        "cold_start",
        "rl",
    ]

    flags = [flag for flag in flags if flag not in ("think_format", "0.2")]
    recipe.main(flags)
    said = capsys.readouterr()
    assert (
        "stage rl: finished before" in said.out
        and "8 of 8 answers have every full mark" in said.out
    )
    pairs = [
        json.loads(line)
        for line in (tmp_path / "run" / "samples" / "samples.jsonl").read_text().splitlines()
    ]
    assert len(pairs) == 8 and pairs[0][0][0]["role"] == "user"
    table = said.out[said.out.index("6 held-out prompts") :]
    assert all(f"│ {stage} " in table for stage in STAGES if stage != "samples")
    for stage in ("rl", "sft", "rl_again"):
        adapter = json.loads((tmp_path / "run" / stage / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == str(tmp_path / "run" / "cold_start")

    shutil.rmtree(tmp_path / "run" / "rl_again")
    recipe.main(flags)
    said = capsys.readouterr()
    assert said.out.count("finished before") == 4 and "step 1/1" in said.out
