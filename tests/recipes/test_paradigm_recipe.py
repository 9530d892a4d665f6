"""recipes/paradigm.py: every method on the embedded model for a few tokens, and what a second run finds done."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from support.programs import load_recipe

METHODS = ("sft", "rft", "dpo", "online_rft", "ppo", "grpo", "grpo_process")
BUDGET = 600
REWARD = '''
from grpo_hf import reward_settings

@reward_settings(in_process=True)
def even(completions, **_):
    """Right and wrong are even among the babble of an untrained model."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [float(sum(map(ord, text)) % 2 == 0) for text in texts]
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
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def test_every_method_spends_the_budget_and_is_run_once(
    recipe: ModuleType, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.main(["--method", "all", "--seeds", "3", *flags])
    said = capsys.readouterr().out
    out = Path(flags[flags.index("--output_dir") + 1])
    results = {name: json.loads((out / "seed3" / f"{name}.json").read_text()) for name in METHODS}
    base = json.loads((out / "seed3" / "base.json").read_text())
    for name, result in results.items():
        first, *_, last = result["curve"]
        assert first == {"share": 0.0, "updates": 0, "tokens": 0, "accuracy": base["accuracy"]}, (
            name
        )
        assert (
            last["share"] == 1.0 and last["updates"] > 0 and result["accuracy"] == last["accuracy"]
        ), name
        assert BUDGET <= last["tokens"] <= 4 * BUDGET, (
            name
        )  # the last rollout may go beyond it, with continuations
        assert f"│ {name} " in said
    asked = json.loads((out / "seed3" / "samples.json").read_text())
    assert {len(group) for _, group in asked} == {4}
    right = sum(is_right for _, group in asked for _, is_right in group)
    assert results["rft"]["curve"][-1]["updates"] == -(-right // 16)
    assert [len(group) for group in results["grpo"]["sampled"]] == [2, 2, 2]
    rows = [
        json.loads(line)
        for line in (out / "seed3" / "grpo_process" / "metrics.jsonl").read_text().splitlines()
    ]
    tokens = [
        16 * row["completions/mean_length"] + row["monte_carlo/tokens"]
        for row in rows
        if "reward" in row
    ]
    assert results["grpo_process"]["curve"][-1]["tokens"] == round(sum(tokens))
    assert "grpo_process − grpo, paired by seed" in said

    recipe.main(["--method", "grpo", "sft", "--seeds", "3", *flags])
    assert "seed3: " not in capsys.readouterr().out
    (out / "accuracy.png").unlink()
    recipe.main(["--plot", *flags])
    assert (out / "accuracy.png").stat().st_size > 1000 and (
        out / "maj_and_pass_at_k.png"
    ).stat().st_size > 1000
    with pytest.raises(SystemExit):
        recipe.main(["--method", "grpo", "--seeds", "4", *flags, "--budget", "700"])
    assert "holds results of other settings" in capsys.readouterr().err


def test_intervals_over_seeds(recipe: ModuleType) -> None:
    """Student's t with two degrees of freedom: ± 4.303 · s / √3."""
    assert recipe.half_width([0.1, 0.2, 0.3]) == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert recipe.half_width([0.5]) == 0.0
    assert recipe.interval([0.25, 0.25]) == "0.250 ± 0.000"


def test_curves_are_read_between_their_points(recipe: ModuleType) -> None:
    curve = [
        {"share": 0.0, "accuracy": 0.2},
        {"share": 0.5, "accuracy": 0.6},
        {"share": 1.0, "accuracy": 0.7},
    ]
    assert [recipe.at(curve, share) for share in (0.0, 0.25, 0.75)] == pytest.approx(
        [0.2, 0.4, 0.65]
    )
