"""`grpo-hf baseline`: what a base earns before it is trained."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM

from grpo_hf import cli
from grpo_hf.runs import baseline
from grpo_hf.runs.baseline import Answer, Baseline, verdict

# It writes down what it is asked, and pays by the text alone.
REWARDS = """
import json

def texts_of(completions):
    return [completion[0]["content"] for completion in completions]

def even(completions, prompts, **columns):
    texts = texts_of(completions)
    with open(__file__ + ".seen", "a") as file:
        for prompt, text in zip(prompts, texts):
            file.write(json.dumps([prompt[0]["content"], text]) + "\\n")
    return [float(len(text) % 2 == 0) for text in texts]

def with_an_e(completions, **columns):
    return [None if "a" in text else float("e" in text) for text in texts_of(completions)]
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path) -> Callable[..., list[str]]:
    """The arguments of a small recipe, with flags."""
    rows = [{"prompt": f"{n} and {n} is"} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(REWARDS)
    settings = {
        "model_name_or_path": str(tiny_checkpoint),
        "dataset_path": str(tmp_path / "rows.jsonl"),
        "rewards": ["./mine.py:even", "./mine.py:with_an_e"],
        "reward_weights": [1.0, 0.5],
        "output_dir": str(tmp_path / "run"),
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "max_completion_length": 6,
        "max_steps": 1,
        "eval_rows": 4,
        "use_cpu": True,
        "dtype": "float32",
        "reward_workers": 0,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    return lambda *flags: ["baseline", str(tmp_path / "recipe.yaml"), *flags]


def counted(text: str, what: str) -> tuple[int, int]:
    """Return the numbers of a row: 3 of 8."""
    found = re.search(rf"{what}[^│]*│ +(\d+) of (\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def answered(folder: Path, count: int) -> list[list[str]]:
    """Return the last prompts and answers that the reward has seen."""
    # The rewards were tried on made-up completions before.
    return [json.loads(line) for line in (folder / "mine.py.seen").open()][-count:]


def test_the_counts_are_those_of_the_texts(
    recipe: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    news: list[tuple[str, int]] = []
    update = baseline.EvaluationProgress.update

    def noted(progress: Any, side: str, kind: str, count: int) -> None:
        # How many completions the reward has judged by then.
        file = tmp_path / "mine.py.seen"
        news.append((kind, len(file.read_text().splitlines()) if file.exists() else 0))
        update(progress, side, kind, count)

    monkeypatch.setattr(baseline.EvaluationProgress, "update", noted)
    cli.main(recipe("--prompts", "5"))
    # Each part is announced when it begins, and judging before it judges.
    assert list(dict.fromkeys(kind for kind, _ in news)) == ["samples", "greedy", "judging"]
    assert news[-1][0] == "judging" and len({judged for _, judged in news}) == 1
    file = tmp_path / "mine.py.seen"
    assert len(file.read_text().splitlines()) == news[-1][1] + 25
    text = capsys.readouterr().out
    # The greedy answers are judged last, by the reward that counts right answers.
    seen, greedy = answered(tmp_path, 25)[:20], answered(tmp_path, 5)
    groups = [seen[start : start + 4] for start in range(0, 20, 4)]
    right, solved, differing, totals = 0, 0, 0, []
    for group in groups:
        assert len({prompt for prompt, _ in group}) == 1
        earned = []
        for _, answer in group:
            second = 0 if "a" in answer else 0.5 * ("e" in answer)
            earned.append((len(answer) % 2 == 0) + second)
        marks = [len(answer) % 2 == 0 for _, answer in group]
        right += sum(marks)
        solved += any(marks)
        differing += len(set(earned)) > 1
        totals += earned
    assert counted(text, "right answers") == (right, 20)
    of_greedy = sum(len(answer) % 2 == 0 for _, answer in greedy)
    assert counted(text, "right greedily") == (of_greedy, 5)
    assert counted(text, "prompts with a right answer") == (solved, 5)
    assert counted(text, "prompts whose answers earn") == (differing, 5)
    assert f"{sum(totals) / 20:.3f}" in text
    # What the greedy answers earn is shown by all rewards, as it is of the sampled ones.
    earned_greedily = [
        (len(answer) % 2 == 0) + (0 if "a" in answer else 0.5 * ("e" in answer))
        for _, answer in greedy
    ]
    of_these = re.search(r"reward of the greedy answers *│ *(.+?) to (.+?) *│ *(\S+)", text)
    assert of_these is not None, text
    ends = min(earned_greedily), max(earned_greedily)
    assert (float(of_these[1]), float(of_these[2])) == ends
    assert of_these[3] == f"{sum(earned_greedily) / 5:.3f}"
    marks = re.findall(r"^  greedy, reward (\S+):", text, flags=re.MULTILINE)
    assert len(marks) == 3 and set(map(float, marks)) <= set(earned_greedily)
    # Prompts from all of the data, none of them held out or asked twice.
    assert len({group[0][0] for group in groups}) == 5
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_no_matter(
    recipe: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A look comes between two runs, too."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    cli.main(recipe("--prompts", "1"))
    assert "1 training prompts of" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        cli.main(["train", *recipe()[1:]])
    assert "holds a run already" in capsys.readouterr().err


def test_steps_are_not_valued(
    recipe: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """With a process reward there is a weight more than rewards that judge an answer."""
    flags = ["--prompts", "1", "--rewards", "./mine.py:even", "--reward_weights", "0", "1"]
    cli.main(recipe(*flags, "--process_reward", "monte_carlo(n=2)"))
    assert "process_reward values steps" in capsys.readouterr().out


def test_a_mistake_in_the_recipe_is_named(
    recipe: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(recipe("--eval_reward", "evn"))
    assert end.value.code == 2
    assert "Did you mean 'even'" in capsys.readouterr().err


def test_several_processes_are_refused(
    recipe: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A recipe that is read makes the state of accelerate anew.
    monkeypatch.setattr(baseline, "PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(SystemExit):
        cli.main(recipe())
    assert "start it without a launcher" in capsys.readouterr().err


@pytest.mark.long
def test_an_adapter_that_is_trained_on_answers(
    recipe: Callable[..., list[str]], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """A training that begins with `adapter` begins with its answers."""
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    cli.main(recipe("--prompts", "2"))
    of_base = answered(tmp_path, 10)
    cli.main(recipe("--prompts", "2"))
    assert answered(tmp_path, 10) == of_base
    cli.main(recipe("--prompts", "2", "--adapter", str(tmp_path / "adapter")))
    of_adapter = answered(tmp_path, 10)
    assert [prompt for prompt, _ in of_adapter] == [prompt for prompt, _ in of_base]
    assert of_adapter != of_base


def group(*earned: float | None, right: bool = False, cut: bool = False) -> list[Answer]:
    return [Answer("text", each, right, cut) for each in earned]


def greedily(*right: bool | None) -> list[Answer]:
    return [Answer("text", None if each is None else float(each), each, False) for each in right]


def test_the_greedy_answer_is_shown_beside_the_sampled_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A base that fails in form alone can do more than its sampled answers show."""
    rows: list[Any] = [{"prompt": "Who?"}, {"prompt": "Where?"}]
    groups = [[Answer("Ann", 1, True, False), Answer("Bob", 0, False, False)], group(0, 0)]
    greedy = [Answer("It is Ann", 0.3, False, False), Answer("Here", None, None, False)]
    console = Console(highlight=False, width=80)
    found = Baseline(rows, groups, greedy)
    baseline._show_answers(console, found)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Who?",
        "  greedy, reward 0.3: It is Ann",
        "  best sampled, reward 1: Ann",
        "  worst sampled, reward 0: Bob",
        "",
        "Where?",
        "  greedy, reward none: Here",
        "  sampled, reward 0: text",
        "",
    ]
    console.print(baseline._table(found, "accuracy", 6))
    names = re.findall(r"^│ (.+?) +│", capsys.readouterr().out, flags=re.MULTILINE)
    # Each below what it tells more of.
    assert names[:4] == [
        "right answers (full mark of accuracy)",
        "  95% interval of right answers",
        "right greedily, as it is compared at the end",
        "  reward of the greedy answers",
    ]


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ([group(0, 1), group(0, 0)], "1 of 2 prompts have answers that earn different"),
        ([group(0, 0), group(0, 0)], "Every answer earned 0"),
        ([group(0.2, 0.2), group(0, 0)], "All answers to a prompt earned the same"),
        ([group(1, 1, right=True)], "Every answer is right"),
        ([group(None, None)], "No reward could judge any answer"),
        ([group(0, 1, cut=True)], "Most answers were cut off"),
        # A quarter is few, and a third is not.
        ([group(0, 1), *[group(0, 0)] * 3], "These are few: most of a step is for nothing"),
        # What could not be judged is left out of its group.
        ([group(None, 1, 1)], "All answers to a prompt earned the same"),
    ],
)
def test_what_a_baseline_says(groups: list[list[Answer]], says: str) -> None:
    rows: list[Any] = [{"prompt": "?"}] * len(groups)
    assert says in verdict(Baseline(rows, groups, greedily(*[False] * len(groups))))


def test_a_base_that_is_right_already_is_named() -> None:
    rows: list[Any] = [{"prompt": "?"}] * 8
    groups = [group(0, 1)] * 8
    room = "has little room"
    assert room in verdict(Baseline(rows, groups, greedily(*[True] * 8)))
    assert room not in verdict(Baseline(rows, groups, greedily(*[True] * 7, None)))


def test_a_few_prompts_that_teach_are_said_to_be_few() -> None:
    rows: list[Any] = [{"prompt": "?"}] * 3
    greedy = greedily(*[False] * 3)
    said = verdict(Baseline(rows, [group(0, 1), group(0, 0), group(0, 0)], greedy))
    assert "These are few" not in said


def test_answers_that_are_right_greedily_alone_want_a_lower_temperature() -> None:
    rows: list[Any] = [{"prompt": "?"}] * 8
    wrong, right = group(0, 0), group(1, 0, right=True)
    cooler = "more sampled answers are right at a lower --temperature"
    greedy = greedily(*[True] * 4, *[False] * 4)
    said = verdict(Baseline(rows, [right] + [wrong] * 7, greedy))
    assert f"(50% and 12%), so {cooler}" in said
    as_many = Baseline(rows, [right] * 4 + [wrong] * 4, greedy)
    assert cooler not in verdict(as_many)
