"""Test recipes/r1.py: its stages with one step each, and a second run that finds them finished."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from support.programs import RECIPES, load_recipe

from grpo_hf.rewards.language import language
from grpo_hf.rewards.math import math
from grpo_hf.rewards.think_format import think_format

pytestmark = pytest.mark.long

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
        "<think>First 30 + 40 = 70, and then 5 + 9 = 14, so together 70 + 14 = 84.</think>"
        "<answer>84</answer>"
    )
    # The third form reasons in German.
    assert think_format(forms) == [1.0] * 3 and math(forms, answer=[embedded] * 3) == [1.0] * 3
    assert language(forms) == [1.0, 1.0, 0.0] and language(forms, language="de") == [0.0, 0.0, 1.0]


def test_stages_follow_each_other_and_a_finished_one_is_kept(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lenient.py").write_text(
        "def lenient(completions, **_):\n    return [1.0] * len(completions)\n"
    )
    out = tmp_path / "run"
    flags = ["--config", str(RECIPES / "r1_tiny.yaml"), "--output_dir", str(out)]
    flags += ["--cold_start_steps", "2", "--max_steps", "1", "--logging_steps", "1"]
    flags += ["--eval_rows", "6"]
    flags += ["--max_completion_length", "8", "--per_device_train_batch_size", "8"]
    flags += ["--sample_prompts", "4", "--samples_per_prompt", "2"]
    flags += ["--reward_weights", "1", "0.2"]
    flags += ["--rewards", f"{tmp_path}/lenient.py:lenient", "think_format"]
    # An untrained model has no sample with the right tags.
    with pytest.raises(SystemExit):
        recipe.main(flags)
    said = capsys.readouterr()
    assert "no sample has the full mark of every reward" in said.err
    for stage in STAGES:
        is_finished = (out / stage / recipe.FINISHED).exists()
        assert is_finished == (stage in ("cold_start", "rl"))

    # Without the reward that no sample satisfies, and its weight, the run goes on.
    flags.remove("think_format")
    flags.remove("0.2")
    recipe.main(flags)
    said = capsys.readouterr()
    assert "stage rl: finished before" in said.out
    assert "8 of 8 answers have every full mark" in said.out
    # Both stages of GRPO beside each other.
    assert f"report: {out}/report.html" in said.out
    page = (out / "report.html").read_text()
    assert "rl_again" in page and "reward" in page
    pairs = list(map(json.loads, (out / "samples" / "samples.jsonl").read_text().splitlines()))
    assert len(pairs) == 8 and pairs[0][0][0]["role"] == "user"
    table = said.out[said.out.index("6 held-out prompts") :]
    for stage in ("cold_start", "rl", "sft", "rl_again"):
        assert f"│ {stage} " in table
    results = json.loads((out / "results.json").read_text())
    assert results["samples"] == 8
    assert list(results["stages"]) == ["cold_start", "rl", "sft", "rl_again"]
    for shares in results["stages"].values():
        assert (shares["lenient"]["right"], shares["lenient"]["total"]) == (6, 6)
    # Written by the recipe and by a run; the table takes both as texts.
    for stage in ("sft", "rl"):
        for line in (out / stage / "evaluation.jsonl").read_text().splitlines():
            assert isinstance(json.loads(line)["adapter"]["answer"], str)
    for stage in ("rl", "sft", "rl_again"):
        adapter = json.loads((out / stage / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == str(out / "cold_start")

    # Only the stage whose folder is missing runs again.
    shutil.rmtree(out / "rl_again")
    recipe.main(flags)
    said = capsys.readouterr()
    assert said.out.count("finished before") == 4 and "step 1/1" in said.out
