"""Test recipes/paradigm.py: all methods with a small budget, and a second run without work."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.programs import RECIPES, load_recipe
from transformers import PreTrainedTokenizerBase

from grpo_hf.runs.train import cold_started
from unified_paradigm.intervals import half_width, interval
from unified_paradigm.learning_curve import accuracy_at, gain_at_equal_time
from unified_paradigm.start import Start

METHODS = ("sft", "rft", "dpo", "online_rft", "ppo", "grpo", "grpo_process", "grpo_gain")
BUDGET = 600
REWARD = '''
from grpo_hf import reward_settings

@reward_settings(in_process=True)
def even(completions, **_):
    """Call about half of an untrained model's completions correct."""
    rewards = []
    for completion in completions:
        text = completion if isinstance(completion, str) else completion[0]["content"]
        rewards.append(float(sum(map(ord, text)) % 2 == 0))
    return rewards
'''


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("paradigm")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("paradigm")
    (folder / "even.py").write_text(REWARD, encoding="utf-8")
    settings = {
        "output_dir": folder / "run",
        "rewards": f"{folder}/even.py:even",
        "budget": BUDGET,
        "points": 2,
        "epochs": 1,
        "samples": 2,
        "sampled_problems": 3,
        "cold_start_steps": 1,
        "eval_rows": 8,
        "max_completion_length": 10,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "chat_template_kwargs": '{"enable_thinking": false}',
    }
    flags = []
    for name, value in settings.items():
        flags += [f"--{name}", str(value)]
    return flags


@pytest.fixture
def templated(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options with which problems are put into the chat template, after the cold start."""
    calls: list[dict[str, Any]] = []
    template = PreTrainedTokenizerBase.apply_chat_template

    def recorded(self: Any, conversation: Any, **options: Any) -> Any:
        # TRL also tries the template with messages of its own.
        if "How many" in str(conversation):
            calls.append(options)
        return template(self, conversation, **options)

    def start(task: Any) -> str:
        checkpoint = cold_started(task)
        calls.clear()
        return checkpoint

    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", recorded)
    monkeypatch.setattr("grpo_hf.runs.train.cold_started", start)
    return calls


@pytest.mark.long
def test_every_method_spends_the_budget_and_is_run_once(
    recipe: ModuleType,
    flags: list[str],
    templated: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe.main(["--method", "all", "--seeds", "3", *flags])
    # Training, evaluations and samples, of every method alike.
    assert len(templated) > len(METHODS)
    assert all(options.get("enable_thinking") is False for options in templated)
    said = capsys.readouterr().out
    out = Path(flags[flags.index("--output_dir") + 1])
    results = {}
    for name in METHODS:
        results[name] = json.loads((out / "seed3" / f"{name}.json").read_text())
    base = json.loads((out / "seed3" / "base.json").read_text())
    # The reward calls about half of the completions right, which takes texts.
    assert base["accuracy"] > 0
    for name, result in results.items():
        first, *_, last = result["curve"]
        zeros = {"share": 0.0, "updates": 0, "tokens": 0, "seconds": 0.0}
        assert first == zeros | {"accuracy": base["accuracy"]}, name
        seconds = [point["seconds"] for point in result["curve"]]
        assert seconds == sorted(set(seconds)) and seconds[-1] < result["seconds"], name
        assert last["share"] == 1.0 and last["updates"] > 0, name
        assert result["accuracy"] == last["accuracy"], name
        # The last rollout and its continuations may exceed the budget.
        assert BUDGET <= last["tokens"] <= 4 * BUDGET, name
        assert f"│ {name} " in said
    asked = json.loads((out / "seed3" / "samples.json").read_text())
    right = 0
    for _, group in asked:
        # --num_generations
        assert len(group) == 4
        for _, is_right in group:
            right += is_right
    # One epoch over the correct samples, 16 in a batch.
    assert results["rft"]["curve"][-1]["updates"] == -(-right // 16)
    # Three problems (--sampled_problems) with two samples each (--samples).
    assert list(map(len, results["grpo"]["sampled"])) == [2, 2, 2]
    for name in ("grpo_process", "grpo_gain"):
        metrics = (out / "seed3" / name / "metrics.jsonl").read_text()
        tokens = []
        for row in map(json.loads, metrics.splitlines()):
            if "reward" in row:
                tokens.append(16 * row["completions/mean_length"] + row["monte_carlo/tokens"])
        assert results[name]["curve"][-1]["tokens"] == round(sum(tokens))
        assert f"{name} − grpo, paired by seed: " in said
        assert f"{name} − grpo, paired by seed, at equal processor time: " in said

    # All results exist, so no method runs again.
    recipe.main(["--method", "grpo", "sft", "--seeds", "3", *flags])
    assert "seed3: " not in capsys.readouterr().out
    (out / "accuracy.png").unlink()
    recipe.main(["--plot", *flags])
    page = (out / "report.html").read_text()
    assert all(name in page for name in ("online_rft", "ppo", "grpo_process"))
    for name in ("accuracy", "maj_and_pass_at_k"):
        assert (out / f"{name}.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        recipe.main(["--method", "grpo", "--seeds", "4", *flags, "--budget", "700"])
    assert "holds results of other settings" in capsys.readouterr().err


@pytest.mark.long
def test_answers_that_prompts_begin_are_evaluated_as_they_are_trained(
    recipe: ModuleType, flags: list[str], tmp_path: Path
) -> None:
    rows = []
    for number in range(20):
        asked = {"role": "user", "content": f"What is {number} + 2?"}
        begun = {"role": "assistant", "content": "The sum is"}
        rows.append({"prompt": [asked, begun], "answer": f"#### {number + 2}"})
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own, recipe_flags = recipe.flags().parse_known_args(flags)
    start = Start.of(tmp_path / "run", (*recipe_flags, "--dataset_path", str(data)), own)
    for name in METHODS:
        options = start.recipe(name).training.chat_template_kwargs
        assert options == start.training.chat_template_kwargs == {"enable_thinking": False}


def test_it_finds_its_parts_as_a_program(tmp_path: Path) -> None:
    """A wrong flag ends the program after its imports."""
    command = [sys.executable, str(RECIPES / "paradigm.py"), "--method", "reinforce"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "invalid choice: 'reinforce'" in ended.stderr


def test_intervals_over_seeds() -> None:
    """With two degrees of freedom, Student's t gives ± 4.303 · s / √3."""
    assert half_width([0.1, 0.2, 0.3]) == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert half_width([0.5]) == 0.0
    assert interval([0.25, 0.25]) == "0.250 ± 0.000"


def test_methods_are_compared_when_the_faster_one_is_done() -> None:
    fast = [{"seconds": 0.0, "accuracy": 0.2}, {"seconds": 10.0, "accuracy": 0.5}]
    slow = [{"seconds": 0.0, "accuracy": 0.2}, {"seconds": 40.0, "accuracy": 0.6}]
    assert gain_at_equal_time(slow, fast) == pytest.approx(0.3 - 0.5)
    assert gain_at_equal_time(fast, slow) == pytest.approx(0.5 - 0.3)


def test_curves_are_read_between_their_points() -> None:
    curve = [
        {"share": 0.0, "accuracy": 0.2},
        {"share": 0.5, "accuracy": 0.6},
        {"share": 1.0, "accuracy": 0.7},
    ]
    for share, accuracy in ((0.0, 0.2), (0.25, 0.4), (0.75, 0.65)):
        assert accuracy_at(curve, share) == pytest.approx(accuracy)
