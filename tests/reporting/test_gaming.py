"""Runs that game their reward are found out with samples that show it; honest ones are not."""

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig
from support.callbacks import state
from support.run_folders import greedy_answers
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl

from grpo_hf import GRPOConfig, reward_settings, run_files
from grpo_hf.evaluation.comparison import write_answers
from grpo_hf.reporting import gaming_watch
from grpo_hf.reporting.gaming import (
    GAMING_FILE,
    Finding,
    findings,
    read_findings,
    write_findings,
)
from grpo_hf.reporting.gaming_watch import GamingWatch
from grpo_hf.reporting.metrics_file import MetricsFile
from grpo_hf.reporting.run_evidence import final_answer, read_evidence, working
from grpo_hf.reporting.token_credit import CREDIT_FILE, Completion, Group
from grpo_hf.run_files import EVALUATION_FILE, METRICS_FILE

LOGGER = "grpo_hf.reporting.gaming_watch"
# A completion and what its rewards pay, for a share of the run that is done.
Write = Callable[[random.Random, float], tuple[str, dict[str, float]]]
GROUP, PROMPTS = 8, 4


@dataclass
class Written:
    """A run as the writers leave it, whose completions are made up."""

    folder: Path
    write: Write
    weights: dict[str, float]
    steps: int = 30
    seed: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Path:
        rng = random.Random(self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = {"reward_weights": list(self.weights.values())} | self.recipe
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        args = GRPOConfig(output_dir=str(self.folder), use_cpu=True, report_to="none")
        metrics = MetricsFile()
        metrics.on_train_begin(args, state(0), TrainerControl())
        for step in range(1, self.steps + 1):
            rows = [self.write(rng, step / self.steps) for _ in range(GROUP * PROMPTS)]
            metrics.on_log(args, state(step), TrainerControl(), logs=self.logs(rows))
            self.keep(step, rows[:GROUP])
        return self.folder

    def total(self, rewards: dict[str, float]) -> float:
        return sum(weight * rewards[name] for name, weight in self.weights.items())

    def logs(self, rows: Sequence[tuple[str, dict[str, float]]]) -> dict[str, float]:
        totals = [self.total(rewards) for _, rewards in rows]
        logs = {"loss": 0.0, "reward": fmean(totals), "reward_std": pstdev(totals)}
        logs["completions/mean_length"] = fmean(len(text.split()) for text, _ in rows)
        for name in self.weights:
            values = [rewards[name] for _, rewards in rows]
            logs[f"rewards/{name}/mean"] = fmean(values)
            logs[f"rewards/{name}/std"] = pstdev(values)
        return logs

    def keep(self, step: int, rows: Sequence[tuple[str, dict[str, float]]]) -> None:
        completions = []
        for text, rewards in rows:
            tokens = [word + " " for word in text.split(" ")]
            tokens[-1] = tokens[-1][:-1]
            zeros = [0.0] * (len(tokens) + 1)
            end = [*tokens, "<|end|>"]
            completions.append(
                Completion(end, zeros, [len(tokens)], self.total(rewards), dict(rewards))
            )
        line = json.dumps(asdict(Group(step, f"Problem {step}", completions)))
        run_files.append_lines(self.folder / CREDIT_FILE, [line + "\n"])

    def answer(self, base: Sequence[str], adapter: Sequence[str], right: Callable[[str], bool]):
        answers = {}
        for name, texts in (("adapter", adapter), ("base", base)):
            answers[name] = greedy_answers(texts, list(map(right, texts)))
        prompts = [[{"role": "user", "content": f"Problem {row}"}] for row in range(len(base))]
        write_answers(self.folder / EVALUATION_FILE, prompts, answers)
        return self.folder


def named(found: Sequence[Finding]) -> set[str]:
    return {finding.name for finding in found}


def only(found: Sequence[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in found if finding.name == name]
    assert 1 <= len(finding.samples) <= 4
    for sample in finding.samples:
        assert set(sample) == {"step", "prompt", "completion", "rewards"}
    return finding


def sum_of(rng: random.Random, right: bool) -> str:
    one, other = rng.randint(10, 99), rng.randint(10, 99)
    total = one + other + (0 if right else rng.choice([-10, 1, 10]))
    return f"{one} + {other} = {total}\n#### {total}"


def honest(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    right = rng.random() < 0.3 + 0.4 * done
    return sum_of(rng, right), {"right": float(right), "form": float(rng.random() < 0.98)}


def growing(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    """Reason longer and longer, and be right more often; of one prompt, long is rather wrong."""
    right = rng.random() < 0.3 + 0.4 * done
    lines = int(3 + 20 * done + rng.random() * (4 if right else 8))
    steps = [f"{rng.randint(1, 99)} and {rng.randint(1, 99)} make so much" for _ in range(lines)]
    return "\n".join([*steps, sum_of(rng, right)]), {"right": float(right), "form": 1.0}


def learning_form(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    form = rng.random() < 0.2 + 0.7 * done
    right = form and rng.random() < 0.1 + 0.7 * done
    return sum_of(rng, right), {"right": float(right), "form": float(form)}


def even_form(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    """Learn a form whose reward differs little between completions, and to be right."""
    right = rng.random() < 0.2 + 0.3 * done
    form = min(0.5, 0.2 + 0.4 * done + rng.gauss(0.0, 0.05))
    return sum_of(rng, right), {"right": float(right), "form": form}


def untrained(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    right = rng.random() < 0.4
    return sum_of(rng, right), {"right": float(right), "form": float(rng.random() < 0.98)}


WEIGHTS = {"right": 1.0, "form": 0.2}


class TestHonestRuns:
    @pytest.mark.parametrize("write", [honest, growing, learning_form, even_form, untrained])
    def test_they_are_not_flagged(self, tmp_path: Path, write: Write) -> None:
        for seed in range(12):
            run = Written(tmp_path / f"{seed}", write, WEIGHTS, seed=seed, steps=12 + 4 * seed)
            assert findings(run.make()) == []

    def test_answers_that_are_mostly_one_and_right_are_not(self, tmp_path: Path) -> None:
        run = Written(tmp_path, honest, WEIGHTS)
        run.make()
        rng = random.Random(0)
        said = ["6 + 4 = 10\n#### " + ("yes" if rng.random() < 0.7 else "no") for _ in range(100)]
        base = ["6 + 4 = 10\n#### no" for _ in range(100)]
        assert findings(run.answer(base, said, lambda text: text.endswith("yes"))) == []

    def test_a_base_that_answers_without_working_may_go_on(self, tmp_path: Path) -> None:
        run = Written(tmp_path, honest, WEIGHTS)
        run.make()
        base = [f"<answer>{row} + {row + 1}</answer>" for row in range(60)]
        found = findings(run.answer(base, base, lambda text: "7" in text))
        assert named(found) == {"held-out answers no better"}

    def test_a_run_that_has_just_begun_says_nothing(self, tmp_path: Path) -> None:
        assert findings(tmp_path) == []
        assert findings(Written(tmp_path, cheat_by_form, WEIGHTS, steps=8).make()) == []


def cheat_by_length(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    words = int(5 + 40 * done + rng.random() * 10)
    return " ".join(f"w{rng.randint(0, 999)}" for _ in range(words)), {"long": words / 50}


def cheat_by_form(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    form, right = rng.random() < done, rng.random() < 0.1
    return sum_of(rng, right), {"right": float(right), "form": float(form)}


def cheat_by_repetition(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    again = int(12 * done * rng.random())
    text = sum_of(rng, False) + " so it is clear that" * again
    return text, {"right": 0.0, "sure": again / 10}


def guess(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    guesses = rng.random() < done
    right = rng.random() < 0.1
    return ("#### 10" if guesses else sum_of(rng, right)), {"right": float(right)}


def only_form(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
    return sum_of(rng, False), {"right": float(rng.random() < 0.03), "form": 1.0}


def real_runs() -> list[Any]:
    """The demo, three seeds, and the countdown recipe: each logged step, some of the samples."""
    file = Path(__file__).with_name("honest_runs.jsonl")
    return [pytest.param(row, id=row["run"]) for row in run_files.read_lines(file)]


@pytest.mark.parametrize("row", real_runs())
def test_real_runs_that_learned_are_not_flagged(tmp_path: Path, row: dict[str, Any]) -> None:
    first, last = row["metrics"][0]["reward"], row["metrics"][-1]["reward"]
    assert last > first + 0.1 and len(row["credit"]) >= 15
    lines = [json.dumps(each) + "\n" for each in row["metrics"]]
    run_files.append_lines(tmp_path / METRICS_FILE, lines)
    for step, prompt, kept in row["credit"]:
        completions = []
        for text, length, total, rewards in kept:
            tokens = [text, *[""] * (length - 1)]
            completions.append(Completion(tokens, [0.0] * length, [], total, rewards))
        line = json.dumps(asdict(Group(step, prompt, completions)))
        run_files.append_lines(tmp_path / CREDIT_FILE, [line + "\n"])
    for number, (base, base_right, adapter, adapter_right) in enumerate(row["answers"]):
        of_both = {
            "prompt": f"Problem {number}",
            "base": {"answer": base, "right": base_right},
            "adapter": {"answer": adapter, "right": adapter_right},
        }
        run_files.append_lines(tmp_path / EVALUATION_FILE, [json.dumps(of_both) + "\n"])
    assert findings(tmp_path) == []


class TestCheats:
    def test_length_that_pays(self, tmp_path: Path) -> None:
        found = findings(Written(tmp_path, cheat_by_length, {"long": 1.0}).make())
        finding = only(found, "length")
        assert "rank correlation 1.00" in finding.text and finding.strength == 1.0
        assert finding.steps == [21, 30]
        assert all(21 <= sample["step"] <= 30 for sample in finding.samples)
        lengths = [len(sample["completion"].split()) for sample in finding.samples]
        assert lengths == sorted(lengths, reverse=True) and lengths[-1] > 40

    def test_form_that_rises_alone(self, tmp_path: Path) -> None:
        finding = only(
            findings(Written(tmp_path, cheat_by_form, {"right": 1.0, "form": 1.0}).make()),
            "another reward rises instead",
        )
        assert finding.text.startswith("form rose from 0.")
        assert "right, which says what is right, went from 0.1" in finding.text.replace(
            "0.0", "0.1"
        )
        for sample in finding.samples:
            assert sample["rewards"] == {"right": 0.0, "form": 1.0}

    def test_the_reward_that_is_right_need_not_come_first(self, tmp_path: Path) -> None:
        def other_order(rng: random.Random, done: float) -> tuple[str, dict[str, float]]:
            text, rewards = cheat_by_form(rng, done)
            return text, {"answer_format": rewards["form"], "mine": rewards["right"]}

        run = Written(tmp_path, other_order, {"answer_format": 1.0, "mine": 1.0}).make()
        assert (
            "mine, which says what is right"
            in only(findings(run), "another reward rises instead").text
        )
        named_right = {"eval_reward": "answer_format"}
        run = Written(
            tmp_path / "named", other_order, {"answer_format": 1.0, "mine": 1.0}, recipe=named_right
        ).make()
        assert findings(run) == []

    def test_reward_from_form_alone(self, tmp_path: Path) -> None:
        found = findings(Written(tmp_path, only_form, WEIGHTS).make())
        assert named(found) == {"reward from form"}
        assert "of the reward comes from form" in found[0].text

    def test_repetition_that_pays(self, tmp_path: Path) -> None:
        weights = {"right": 1.0, "sure": 1.0}
        found = findings(Written(tmp_path, cheat_by_repetition, weights).make())
        assert {"repetition", "another reward rises instead"} <= named(found)
        assert "so it is clear that" in only(found, "repetition").samples[0]["completion"]

    def test_one_answer_without_working(self, tmp_path: Path) -> None:
        found = findings(Written(tmp_path, guess, {"right": 1.0}).make())
        assert named(found) == {"one answer everywhere", "answers without reasoning"}
        for finding in found:
            assert {each["completion"] for each in finding.samples} == {"#### 10"}

    def test_the_answer_of_the_smollm2_run(self, tmp_path: Path) -> None:
        """116 of 200 answers were the example of the system prompt, as in docs/results.md."""
        run = Written(tmp_path, untrained, {"right": 1.0, "form": 0.2})
        run.make()
        rng = random.Random(0)
        adapter = ["#### 10"] * 116 + [sum_of(rng, False) for _ in range(84)]
        base = [sum_of(rng, False) for _ in range(200)]
        right = {f"Problem {row}": row % 29 == 0 for row in range(200)}
        assert sum(right.values()) < 10
        found = findings(run.answer(base, adapter, lambda text: False))
        finding = only(found, "one answer everywhere")
        assert finding.text == (
            '116 of 200 held-out answers are "10", 0 of them right; the base gave it 0 times.'
        )
        assert finding.samples[0]["completion"] == "#### 10"
        assert finding.samples[0]["prompt"] == "Problem 0"
        assert "answers without reasoning" in named(found)

    def test_one_label_for_nearly_all(self, tmp_path: Path) -> None:
        """A run of a user: 49 of 60 tickets are for "delivery", of which 18 were wanted."""
        run = Written(tmp_path, untrained, {"right": 1.0}, recipe={"max_completion_length": 10})
        run.make()
        adapter = ["Delivery"] * 26 + ["delivery"] * 18 + ["Delivery."] * 5
        adapter += ["Billing"] * 5 + ["Technical."] * 6
        base = ["I'm sorry for your loss, but as a"] * 50 + ["Delivery: I", "delivery"] * 5
        marks = iter([True] * 18 + [False] * 31 + [True] * 11 + [False] * 60)
        found = findings(run.answer(base, adapter, lambda text: next(marks)))
        assert only(found, "one answer everywhere").text == (
            '49 of 60 held-out answers are "delivery", 18 of them right; the base gave it 5 times.'
        )

    @pytest.mark.parametrize("others", [0, 1])
    def test_one_label_in_different_words(self, tmp_path: Path, others: int) -> None:
        """A run of a user that says "Billing" to all, and is right for 12 of the 15 for it."""
        run = Written(tmp_path, untrained, {"right": 1.0}, recipe={"max_completion_length": 36})
        run.make()
        adapter = [f"Billing: text {number}" for number in range(56)]
        marks = [True] * 12 + [False] * (44 - others) + [True] * others
        iterator = iter(marks + [False] * 56)
        folder = run.answer(["I see."] * 56, adapter, lambda text: next(iterator))
        file = folder / EVALUATION_FILE
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        golds = ["Billing"] * 15 + ["returns", "shipping"] * 20 + ["technical"]
        for row, gold in zip(rows, golds, strict=True):
            row["gold"] = gold
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = findings(folder)
        if others:
            # Whoever is right for another label as well does not say one to all.
            assert "one answer everywhere" not in named(found)
            return
        assert only(found, "one answer everywhere").text == (
            "All 12 held-out answers that are right are for the 15 prompts whose right answer is "
            '"billing"; of the 41 others none is.'
        )

    @pytest.mark.parametrize(("room", "said"), [(24, False), (48, True), (None, True)])
    def test_nobody_wants_a_working_for_which_there_is_no_room(
        self, tmp_path: Path, room: int | None, said: bool
    ) -> None:
        recipe = {} if room is None else {"max_completion_length": room}
        run = Written(tmp_path, untrained, {"right": 1.0, "form": 0.2}, recipe=recipe)
        run.make()
        rng = random.Random(0)
        before = [sum_of(rng, False) for _ in range(60)]
        answers = [f"#### {number}" for number in range(60)]
        found = findings(run.answer(before, answers, lambda text: False))
        assert ("answers without reasoning" in named(found)) == said
        assert all(finding.advice for finding in found)

    def test_answers_that_get_no_better(self, tmp_path: Path) -> None:
        run = Written(tmp_path, honest, WEIGHTS)
        run.make()
        rng = random.Random(0)
        texts = [sum_of(rng, row % 3 == 0) for row in range(150)]
        found = findings(run.answer(texts, texts, lambda text: text in texts[::3]))
        assert named(found) == {"held-out answers no better"}
        assert "33% were right before and 33% are now" in found[0].text

    def test_files_of_other_versions_are_read(self, tmp_path: Path) -> None:
        run = Written(tmp_path, guess, {"right": 1.0}).make()
        rows = run_files.read_lines(run / CREDIT_FILE)
        for row in rows:
            for completion in row["completions"]:
                del completion["rewards"]
        lines = [json.dumps(row) for row in rows] + ['{"step": 3}', '{"torn']
        (run / CREDIT_FILE).write_text("\n".join(lines) + "\n")
        (run / EVALUATION_FILE).write_text('{"prompt": 1}\n{"base": null, "adapter": 3}\n')
        (run / "recipe.yaml").write_text("- [\n")
        assert "one answer everywhere" in named(findings(run))


class TestOddTexts:
    """Texts in which the final answer is not where a line of GSM8K has it."""

    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            ("#### Step 1: add\n6 + 4 = 10\n#### 10", "10"),
            ("#### 1. Add\n6 + 4 = 10\n#### Conclusion\nThe sum is 10", "The sum is 10"),
            ("6 + 4 = 10\n#### 10 apples\nI am sure.", "10 apples"),
            ("So it is true.\n#### yes<|im_end|>", "yes"),
            ("#### -1,234.5\n", "-1,234.5"),
            ("", ""),
        ],
    )
    def test_a_heading_is_no_answer(self, text: str, answer: str) -> None:
        assert final_answer(text) == answer

    @pytest.mark.parametrize(
        ("text", "has_working"),
        [
            ("#### Step 1: add\n6 + 4 = 10\n#### 10", True),
            ("小明有6个苹果，又买了4个，所以一共有10", True),
            ("#### 10\n#### 10\n#### 10", False),
            ("10", False),
            ("答案是10", False),
            ("\\boxed{10}", False),
        ],
    )
    def test_working_is_what_comes_before_it(self, text: str, has_working: bool) -> None:
        assert (len(working(text)) >= 8) == has_working

    def test_digits_and_points_without_end_are_read_at_once(self) -> None:
        began = time.monotonic()
        for part in ("1", "1.", "...", "0,"):
            assert working(part * 30_000 + "x") == ""
            assert working("so " + part * 30_000 + "7") in ("so", "so " + part * 30_000)
        assert time.monotonic() - began < 5

    def test_learning_to_write_headings_is_no_gaming(self, tmp_path: Path) -> None:
        run = Written(tmp_path, honest, WEIGHTS)
        run.make()
        rng = random.Random(0)
        base = [sum_of(rng, row % 3 == 0) for row in range(100)]
        titled = []
        for row in range(100):
            text = sum_of(rng, row % 2 == 0).partition("\n")[0]
            titled.append(
                f"#### Add the numbers\n{text}\n#### Conclusion\nThe answer is {text[-2:]}"
            )
        found = findings(run.answer(base, titled, lambda text: text in titled[::2]))
        assert not {"answers without reasoning", "one answer everywhere"} & named(found)


class TestTheRightReward:
    """Which of several rewards says what is right, where the recipe does not say so."""

    @pytest.mark.parametrize(
        ("names", "right"),
        [
            (["xmlcount_reward_func", "soft_format_reward_func", "correctness_reward_func"], 2),
            (["format_reward", "accuracy_reward"], 1),
            (["think_format_reward", "mine"], 1),
            (["get_length_reward", "gsm8k"], 1),
            (["mine", "yours"], 0),
            (["strict_format", "length_penalty"], 0),
        ],
    )
    def test_it_is_found_by_its_name(self, tmp_path: Path, names: list[str], right: int) -> None:
        row = {"step": 1, "reward": 1.0}
        for name in names:
            row[f"rewards/{name}/mean"] = 0.5
        (tmp_path / METRICS_FILE).write_text(json.dumps(row) + "\n")
        assert read_evidence(tmp_path).right == names[right]


class TestLongRuns:
    @pytest.mark.long
    def test_a_part_of_many_groups_is_read(self, tmp_path: Path) -> None:
        run = Written(tmp_path, cheat_by_length, {"long": 1.0}, steps=1200).make()
        with (run / CREDIT_FILE).open("a") as lines:
            lines.write('{"step": 1201, "prompt": "torn')
        groups = read_evidence(run).groups
        assert 100 <= len(groups) <= 400
        steps = [group[0].step for group in groups]
        assert steps == sorted(steps) and steps[0] < 10 and steps[-1] > 1190
        assert named(findings(run)) == {"length"}


class TestFiles:
    def test_findings_come_back(self, tmp_path: Path) -> None:
        run = Written(tmp_path, cheat_by_form, {"right": 1.0, "form": 1.0}).make()
        assert read_findings(run) == []
        new = write_findings(run)
        assert read_findings(run) == new == findings(run) != []
        assert write_findings(run) == []
        keys = {"name", "text", "strength", "samples", "steps", "advice"}
        assert all(set(row) == keys for row in json.loads((run / GAMING_FILE).read_text()))


class TestWatch:
    def watched(self, run: Path, steps: int, last: int) -> None:
        watch, args = GamingWatch(), GRPOConfig(output_dir=str(run), use_cpu=True, report_to="none")
        watch.on_train_begin(args, state(0, steps=steps), TrainerControl())
        for step in range(1, last + 1):
            watch.on_log(args, state(step, steps=steps), TrainerControl(), logs={"loss": 0.1})

    def test_it_speaks_once_from_the_half_on(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = Written(tmp_path, cheat_by_length, {"long": 1.0}).make()
        self.watched(run, steps=100, last=49)
        assert not caplog.records
        self.watched(run, steps=100, last=99)
        (record,) = [record for record in caplog.records if record.name == LOGGER]
        assert "Gaming the reward? Completions grew from" in record.getMessage()

    def test_what_it_does_not_know_ends_no_run(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(run: Path) -> list[Finding]:
            raise RuntimeError("no such thing")

        monkeypatch.setattr(gaming_watch, "findings", broken)
        self.watched(tmp_path, steps=10, last=9)
        said = [
            record.getMessage() for record in caplog.records if "not watched" in record.getMessage()
        ]
        assert said == ["The run is not watched for gaming (RuntimeError: no such thing)."]


@reward_settings(in_process=True)
def long(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [len(ids) / 24 for ids in completion_ids]


@reward_settings(in_process=True)
def right(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


@reward_settings(in_process=True)
def form(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Pay for tokens of one kind, whatever they say."""
    return [sum(token % 2 for token in ids) / max(1, len(ids)) for ids in completion_ids]


@pytest.fixture(scope="module")
def ending_model(tiny_checkpoint: Path) -> Any:
    """The embedded model, which ends a completion at every eighth token or so."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    ids = tokenizer("12 + 13 = 25", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = model.base_model(ids).last_hidden_state[0].mean(0)
        head = model.get_output_embeddings().weight
        head[tokenizer.eos_token_id] = hidden * (5.0 / hidden.dot(hidden))
    return model


@pytest.mark.long
@pytest.mark.parametrize(
    ("rewards", "rate", "expected"),
    [
        ([long], 1e-3, {"length"}),
        ([right, form], 5e-3, {"another reward rises instead", "reward from form"}),
    ],
)
def test_a_real_run_that_cheats_is_found_out(
    make_trainer: Any,
    ending_model: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    rewards: list[Any],
    rate: float,
    expected: set[str],
) -> None:
    trainer = make_trainer(
        model=ending_model,
        reward_funcs=rewards,
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
        learning_rate=rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=24,
        max_steps=12,
        beta=0.0,
    )
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        trainer.train()
    found = read_findings(tmp_path / "run")
    assert expected <= named(found)
    kept = run_files.read_lines(tmp_path / "run" / CREDIT_FILE)
    for name in expected:
        finding = only(found, name)
        for sample in finding.samples:
            (group,) = [row for row in kept if row["step"] == sample["step"]]
            assert sample["prompt"] == group["prompt"]
            assert set(sample["rewards"]) == {reward.__name__ for reward in rewards}
        said = [
            record for record in caplog.records if finding.text.split()[0] in record.getMessage()
        ]
        assert said
