"""Algorithm 1: what each iteration begins with, what the reward model learns from, and runs that are cut off."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from grpo_hf import GRPOConfig, fitting, iterate, load_reward, reward_settings
from grpo_hf.errors import ConfigError, DataError
from grpo_hf.fitting import FitSettings
from grpo_hf.iterate import Continued, IterativeGRPO
from grpo_hf.preferences import pairs_of
from grpo_hf.reward_model import RewardModel
from grpo_hf.scoring import ScoredReward

Make = Callable[..., IterativeGRPO]
ROWS = [{"prompt": f"{n} and {n + 1}: ", "answer": str(n)} for n in range(24)]
ITERATIONS = 2


@reward_settings(in_process=True)
def digits(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """A rule on a column, which differs within a group of an untrained model's babble."""
    marks = (sum(map(str.isdigit, text)) + len(set(text)) / 10 for text in completions)
    return [mark + len(a) for mark, a in zip(marks, answer, strict=True)]


@pytest.fixture(scope="module")
def make(tiny_checkpoint: Path) -> Make:
    """A loop as a program that has just started makes it."""

    def loop(folder: Path, continued: Continued | None = None, judge: Any = digits, **settings: Any) -> IterativeGRPO:
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        args = {
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 8,
            "max_steps": 3,
            "save_steps": 2,
            "logging_steps": 1,
            "learning_rate": 2e-3,
            "report_to": "none",
            "use_cpu": True,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "reward_weights": [1.0, 0.0],
        }
        return IterativeGRPO(
            model,
            AutoTokenizer.from_pretrained(tiny_checkpoint, padding_side="left"),
            GRPOConfig(**(args | {"output_dir": str(folder)} | settings)),
            Dataset.from_list(ROWS),
            judge=ScoredReward(load_reward(judge)),
            rewards=[digits],
            continued=continued or Continued(8, 4, fit=FitSettings(learning_rate=1e-3, batch_size=4)),
        )

    return loop


@pytest.fixture(scope="module")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("iterative") / "run"
    make(folder).run(ITERATIONS)
    return folder


def results(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight that a run ends with, by file."""
    files = [f"iteration-{n}/{role}" for n in range(ITERATIONS + 1) for role in ("policy", "reward_model")]
    found = {file: load_file(folder / file / "adapter_model.safetensors") for file in files}
    return {f"{file}/{name}": weight for file, weights in found.items() for name, weight in weights.items()}


def steps_of(folder: Path, number: int) -> list[dict[str, Any]]:
    lines = (folder / f"iteration-{number}" / "policy" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "kl" in row]


def test_each_iteration_holds_the_policy_to_the_last_one(finished: Path) -> None:
    weights = results(finished)
    for number in (1, 2):
        kl = [row["kl"] for row in steps_of(finished, number)]
        assert abs(kl[0]) < 1e-6 < kl[-1]
        before, after = (
            [weight for name, weight in weights.items() if name.startswith(f"iteration-{n}/policy")]
            for n in (number - 1, number)
        )
        changed = [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
        assert all(changed)


def test_the_policy_earns_what_the_reward_model_says(finished: Path, make: Make) -> None:
    """Its reward in the first step of iteration 1, where the policy is still that of iteration 0."""
    row = json.loads((finished / "iteration-1/policy/credit.jsonl").read_text().splitlines()[0])
    reward_model = make(finished).load(0)
    texts = ["".join(t for i, t in enumerate(c["tokens"]) if i not in c["special"]) for c in row["completions"]]
    scores = reward_model.scores([row["prompt"]] * len(texts), texts)
    assert [c["reward"] for c in row["completions"]] == pytest.approx(scores.tolist(), abs=1e-3)


def test_the_reward_model_goes_on_with_a_tenth_of_old_pairs(finished: Path, make: Make) -> None:
    loop = make(finished)
    reports = [json.loads((finished / f"iteration-{n}/report.json").read_text()) for n in range(ITERATIONS + 1)]
    assert reports[0]["replayed"] == 0
    for number in (1, 2):
        fresh, replayed = loop._pairs(number)
        assert (len(fresh), len(replayed)) == (reports[number]["pairs"], reports[number]["replayed"])
        assert len(replayed) / len(fresh + replayed) == pytest.approx(0.1, abs=0.03)
        assert fresh == pairs_of(iterate._read(finished / f"iteration-{number}/samples.jsonl"), limit=8, seed=number)
        older = [iterate._read(finished / f"iteration-{n}/samples.jsonl") for n in range(number)]
        texts = {text for groups in older for group in groups for text in group.completions}
        assert {text for pair in replayed for text in (pair.chosen, pair.rejected)} <= texts
        fitted = loop.load(number - 1)
        fitted.fit_pairs(fresh + replayed, learning_rate=1e-3, batch_size=4, seed=42 + number)
        expected = RewardModel.load(finished / f"iteration-{number}/reward_model", make(finished).model, loop.tokenizer)
        pair = fresh[0]
        score, again = (m.scores([pair.prompt], [pair.chosen]) for m in (fitted, expected))
        assert torch.equal(score, again)


class Cut(BaseException):
    """The end of a process, as far as one process can play it."""


def cut_after(ticks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise at the so many-th update of the policy, update of the reward model, or call for samples."""
    left = iter([*[False] * ticks, True])

    def tick() -> None:
        if next(left):
            raise Cut

    class Ticking(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            tick()

    class Trainer(iterate.GRPOTrainer):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.add_callback(Ticking())

    def ticking(function: Any) -> Any:
        def called(*given: Any, **named: Any) -> Any:
            tick()
            return function(*given, **named)

        return called

    monkeypatch.setattr(iterate, "GRPOTrainer", Trainer)
    monkeypatch.setattr(iterate, "sampled_completions", ticking(iterate.sampled_completions))
    monkeypatch.setattr(fitting, "clip_grad_norm_", ticking(fitting.clip_grad_norm_))


def test_a_run_that_is_cut_off_five_times_ends_the_same(make: Make, finished: Path, tmp_path: Path) -> None:
    chance, cuts = random.Random(7), 0
    while cuts < 5:
        with pytest.MonkeyPatch.context() as patch:
            cut_after(chance.randint(1, 6), patch)
            try:
                make(tmp_path / "run").run(ITERATIONS)
            except Cut:
                cuts += 1
            else:
                pytest.fail("it was finished before it had been cut off five times")
    make(tmp_path / "run").run(ITERATIONS)
    expected, found = results(finished), results(tmp_path / "run")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_more_iterations_go_on(make: Make, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(IterativeGRPO, "_policy", lambda self, number, place: made.append(number))
    monkeypatch.setattr(IterativeGRPO, "_samples", lambda self, number, place: None)
    monkeypatch.setattr(IterativeGRPO, "_reward_model", lambda self, number, place: None)
    make(finished).run(ITERATIONS + 1)
    assert made == [ITERATIONS + 1]


def test_samples_that_teach_nothing_are_said(make: Make, tmp_path: Path) -> None:
    @reward_settings(in_process=True)
    def same(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    with pytest.raises(DataError, match="says the same of all samples"):
        make(tmp_path / "run", judge=same).run(1)


@pytest.mark.parametrize("wrong", [{"replay": 1.0}, {"replay": -0.1}, {"samples": 1}, {"prompts": 0}, {"pairs": 0}])
def test_impossible_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected at least"):
        Continued(**wrong)
