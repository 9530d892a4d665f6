"""Tests of algorithm 1: references, the reward model's pairs, and runs that are interrupted."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
    TrainerState,
)

from grpo_hf import GRPOConfig, load_reward, reward_settings
from grpo_hf.durability import whole_checkpoints
from grpo_hf.errors import ConfigError, DataError, HubUnreachable
from grpo_hf.models.kept_weights import role_weights
from grpo_hf.reward_models import fit as fitting
from grpo_hf.reward_models.fit import FitSettings
from grpo_hf.reward_models.model import RewardModel
from grpo_hf.reward_models.preferences import pairs_of
from grpo_hf.runs import iterative as iterate
from grpo_hf.runs.iterative import Continued, IterativeGRPO

Make = Callable[..., IterativeGRPO]
ROWS = [{"prompt": f"{n} and {n + 1}: ", "answer": str(n)} for n in range(24)]
ITERATIONS = 2


@reward_settings(in_process=True)
def digits(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Score by a rule on a column; scores differ within a group of an untrained model's texts."""
    marks = (sum(map(str.isdigit, text)) + len(set(text)) / 10 for text in completions)
    return [mark + len(a) for mark, a in zip(marks, answer, strict=True)]


@pytest.fixture(scope="module")
def make(tiny_checkpoint: Path) -> Make:
    """Return a function that makes a loop as a newly started program does."""

    def loop(
        folder: Path,
        continued: Continued | None = None,
        judge: Any = digits,
        load_in_4bit: bool = False,
        adapter_name: str = "default",
        **settings: Any,
    ) -> IterativeGRPO:
        torch.manual_seed(0)
        quantized = BitsAndBytesConfig(load_in_4bit=True) if load_in_4bit else None
        base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, quantization_config=quantized)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, lora, adapter_name=adapter_name)
        args = {
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 8,
            "max_steps": 3,
            "save_steps": 2,
            "logging_steps": 1,
            "learning_rate": 2e-3,
            "lr_scheduler_type": "constant",  # or a step too many would change nothing
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
            judge=load_reward(judge),
            rewards=[digits],
            continued=continued
            or Continued(8, 4, fit=FitSettings(learning_rate=1e-3, batch_size=4)),
        )

    return loop


@pytest.fixture(scope="module")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("iterative") / "run"
    make(folder).run(ITERATIONS)
    return folder


def results(folder: Path, iterations: int = ITERATIONS) -> dict[str, torch.Tensor]:
    """Return every weight that a run ends with, by file and name."""
    weights = {}
    for number in range(iterations + 1):
        for role in ("policy", "reward_model"):
            place = f"iteration-{number}/{role}"
            saved = load_file(folder / place / "adapter_model.safetensors")
            for name, weight in saved.items():
                weights[f"{place}/{name}"] = weight
    return weights


def assert_equal_results(expected: Path, found: Path, iterations: int = ITERATIONS) -> None:
    """Assert that two runs end with the same weights, to the last bit."""
    first = results(expected, iterations)
    second = results(found, iterations)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def read_samples(folder: Path, number: int) -> list[Any]:
    return iterate._read(folder / f"iteration-{number}" / "samples.jsonl")


def steps_of(folder: Path, number: int) -> list[dict[str, Any]]:
    lines = (folder / f"iteration-{number}" / "policy" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "kl" in row]


@pytest.mark.long
def test_each_iteration_holds_the_policy_to_the_last_one(finished: Path) -> None:
    weights = results(finished)
    for number in (1, 2):
        steps = steps_of(finished, number)
        assert abs(steps[0]["kl"]) < 1e-6 < steps[-1]["kl"]
        compared = 0
        for name, weight in weights.items():
            if name.startswith(f"iteration-{number}/policy"):
                before = name.replace(f"iteration-{number}", f"iteration-{number - 1}")
                assert not torch.equal(weights[before], weight)
                compared += 1
        assert compared


@pytest.mark.long
def test_the_policy_earns_what_the_reward_model_says(finished: Path, make: Make) -> None:
    """Check the first step of iteration 1, where the policy is still the one of iteration 0."""
    row = json.loads((finished / "iteration-1/policy/credit.jsonl").read_text().splitlines()[0])
    reward_model = make(finished).load(0)
    for completion in row["completions"]:
        text = ""
        for position, token in enumerate(completion["tokens"]):
            if position not in completion["special"]:
                text += token
        score = reward_model.scores([row["prompt"]], [text]).item()
        assert completion["reward"] == pytest.approx(score, abs=1e-3)


@pytest.mark.long
def test_the_reward_model_goes_on_with_a_tenth_of_old_pairs(finished: Path, make: Make) -> None:
    loop = make(finished)
    report = json.loads((finished / "iteration-0/report.json").read_text())
    assert report["replayed"] == 0
    for number in (1, 2):
        fresh, replayed = loop._pairs(number)
        report = json.loads((finished / f"iteration-{number}/report.json").read_text())
        assert len(fresh) == report["pairs"]
        assert len(replayed) == report["replayed"]
        assert len(replayed) / len(fresh + replayed) == pytest.approx(0.1, abs=0.03)
        assert fresh == pairs_of(read_samples(finished, number), limit=8, seed=number)
        older_texts = set()
        for earlier in range(number):
            for group in read_samples(finished, earlier):
                older_texts.update(group.completions)
        for pair in replayed:
            assert {pair.chosen, pair.rejected} <= older_texts
        fitted = loop.load(number - 1)
        fitted.fit_pairs(fresh + replayed, learning_rate=1e-3, batch_size=4, seed=42 + number)
        expected = RewardModel.load(
            finished / f"iteration-{number}/reward_model", make(finished).model, loop.tokenizer
        )
        pair = fresh[0]
        score = fitted.scores([pair.prompt], [pair.chosen])
        assert torch.equal(score, expected.scores([pair.prompt], [pair.chosen]))


class Cut(BaseException):
    """The simulated end of a process; no code under test catches it."""


def cut_after(ticks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise `Cut` after `ticks` events.

    An event is an update of the policy, an update of the reward model, or a call for samples.
    """
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


@pytest.mark.long
def test_a_run_that_is_cut_off_five_times_ends_the_same(
    make: Make, finished: Path, tmp_path: Path
) -> None:
    chance = random.Random(7)
    cuts = 0
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
    assert_equal_results(finished, tmp_path / "run")


def cut_at(owner: type, method: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise `Cut` in the `calls`-th call of a method, before it does its work.

    A method that writes text has written half of it by then.
    """
    whole = getattr(owner, method)
    left = iter([*[False] * (calls - 1), True])

    def cut(self: Any, *given: Any, **named: Any) -> Any:
        if not next(left):
            return whole(self, *given, **named)
        if method == "save_to_json":
            Path(given[0]).write_text('{"global_step": 2, "max_st')
        raise Cut

    monkeypatch.setattr(owner, method, cut)


@pytest.mark.long
def test_a_run_that_is_cut_off_while_it_writes_a_checkpoint_ends_the_same(
    make: Make, finished: Path, tmp_path: Path
) -> None:
    """Cut the run at four places; checkpoints are due at steps 2 and 3.

    The last cut falls between the checkpoint of step 3 and the end of its phase.
    """
    trainer = iterate.GRPOTrainer
    policy = tmp_path / "run/iteration-1/policy"
    places = [
        (trainer, "_save_optimizer_and_scheduler", 1, []),
        (TrainerState, "save_to_json", 1, []),
        (trainer, "_save_optimizer_and_scheduler", 2, [2]),
        (trainer, "save_model", 2, [2, 3]),
    ]
    for *place, whole in places:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
            cut_at(*place, patch)
            make(tmp_path / "run").run(1)
        steps = []
        for checkpoint in policy.glob("checkpoint-*"):
            if not whole_checkpoints.why_not_whole(checkpoint):
                steps.append(int(checkpoint.name.split("-")[1]))
        assert sorted(steps) == whole
    make(tmp_path / "run").run(1)
    assert_equal_results(finished, tmp_path / "run", 1)


def test_more_iterations_go_on(make: Make, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(IterativeGRPO, "_policy", lambda self, number, place: made.append(number))
    monkeypatch.setattr(IterativeGRPO, "_samples", lambda self, number, place: None)
    monkeypatch.setattr(IterativeGRPO, "_reward_model", lambda self, number, place: None)
    monkeypatch.setattr(IterativeGRPO, "load", lambda self, number: number)
    assert make(finished).run(ITERATIONS + 1) == ITERATIONS + 1
    assert made == [ITERATIONS + 1]


def test_samples_that_teach_nothing_are_said(make: Make, tmp_path: Path) -> None:
    @reward_settings(in_process=True)
    def same(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    with pytest.raises(DataError, match="says the same of all samples"):
        make(tmp_path / "run", judge=same).run(1)


@pytest.mark.parametrize(
    "wrong", [{"replay": 1.0}, {"replay": -0.1}, {"samples": 1}, {"prompts": 0}, {"pairs": 0}]
)
def test_impossible_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected at least"):
        Continued(**wrong)


def test_settings_against_the_algorithm_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds every iteration to the base"):
        make(tmp_path / "run", reference="base")
    make(tmp_path / "run", reference="base", beta=0.0)  # there is no reference
    with pytest.raises(
        ConfigError, match="judges continuations by the first reward, and in iterative GRPO that is"
    ):
        make(tmp_path / "run", process_reward="monte_carlo(n=2)")


def sampled(loop: IterativeGRPO, folder: Path) -> list[Any]:
    """Return the samples of iteration 0."""
    for phase in (loop._policy, loop._samples):
        phase(0, folder / "run" / "iteration-0")
    return read_samples(folder / "run", 0)


@pytest.mark.long
def test_samples_are_drawn_as_in_training(make: Make, tmp_path: Path) -> None:
    """Check that top_k 1 makes all samples of a prompt equal, also through `generation_kwargs`."""
    cases = [({}, 4), ({"top_k": 1}, 1), ({"generation_kwargs": {"top_k": 1}}, 1)]
    for number, (settings, texts) in enumerate(cases):
        groups = sampled(make(tmp_path / str(number) / "run", **settings), tmp_path / str(number))
        assert {len(set(group.completions)) for group in groups} == {texts}


@pytest.mark.long
def test_a_4_bit_base_can_still_learn_after_the_first_samples(make: Make, tmp_path: Path) -> None:
    loop = make(tmp_path / "run", load_in_4bit=True)
    sampled(loop, tmp_path)
    assert RewardModel.on(loop.model, loop.tokenizer)
    linears = 0
    for module in loop.model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            assert not module.support_avx512bf16_for_cpu
            linears += 1
    assert linears


@pytest.mark.long
def test_a_judge_that_dies_costs_what_it_judged(make: Make, tmp_path: Path) -> None:
    @reward_settings(batched=False)
    def deadly(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        if answer[0] == "3":
            os._exit(1)
        return [float(len(text)) for text in completions]

    groups = sampled(
        make(tmp_path / "run", Continued(24, 2), judge=deadly, reward_workers=1), tmp_path
    )
    score_types = {group.prompt: set(map(type, group.scores)) for group in groups}
    assert len(score_types) == len(ROWS)
    for row in ROWS:
        expected = type(None) if row["answer"] == "3" else float
        assert score_types[row["prompt"]] == {expected}


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    row = {"prompt": "a", "completions": ["one\u2028two\n\x85", ""], "scores": [1.0, None]}
    iterate.write_whole(
        tmp_path / "new" / "samples.jsonl", json.dumps(row, ensure_ascii=False) + "\n"
    )
    assert [group._asdict() for group in iterate._read(tmp_path / "new" / "samples.jsonl")] == [row]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["samples.jsonl"]


@pytest.mark.long
def test_a_policy_of_another_name_goes_through_the_same_iterations(
    make: Make, tmp_path: Path
) -> None:
    learned = []
    for name in ("default", "sft"):
        loop = make(tmp_path / name, adapter_name=name)
        reward_model = loop.run(1)
        weights = role_weights(loop.model, name) | role_weights(loop.model, reward_model.adapter)
        learned.append([weight.detach().clone() for weight in weights.values()])
    for weight, other in zip(*learned, strict=True):
        assert torch.equal(weight, other)


def test_a_hub_that_is_away_costs_no_iteration(make: Make, tmp_path: Path, monkeypatch, capsys):
    loop = make(tmp_path / "run", hub_model_id="me/policy")
    pushes: list[Any] = []
    monkeypatch.setattr(loop.args, "push_to_hub", True)
    monkeypatch.setattr(loop, "_train_policy", lambda number, folder: folder.mkdir(parents=True))

    def away(folder: Path, repo: str, args: Any) -> None:
        assert (folder / "finished").is_file(), "what was paid for counts before the network does"
        pushes.append((folder, repo))
        raise HubUnreachable("the Hub does not answer. Push them later: grpo-hf push")

    monkeypatch.setattr(iterate, "push_run", away)
    loop._policy(1, tmp_path / "run" / "iteration-1")
    assert pushes == [(tmp_path / "run" / "iteration-1" / "policy", "me/policy")]
    assert "note: the Hub does not answer. Push them later" in capsys.readouterr().out


def test_sharded_weights_are_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first phase would train, and the second find parts of weights in their place."""
    with pytest.raises(ConfigError, match="on whole weights, and FSDP and DeepSpeed shard them"):
        make(tmp_path / "run", fsdp=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="DDP"):
        make(tmp_path / "run")
