"""Test recipes/process_reward_model.py: labels, lessons, measures, and a run that learns a word."""

import itertools
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from peft import AutoPeftModelForSequenceClassification
from support.programs import load_recipe

from first_mistakes.lessons import lesson
from first_mistakes.measures import first_mistake, judge
from first_mistakes.traces import Trace, read, split
from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.errors import DataError

FLAGS = ["--train_rows", "24", "--eval_rows", "8", "--learning_rate", "3e-3", "--epochs", "4"]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("process_reward_model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with two tasks. Their wrong steps contain the word "wrong"."""
    folder = tmp_path / "data"
    folder.mkdir()
    for task in ("sums", "words"):
        rows = []
        for n in range(32):
            # Every fourth trace has no mistake; the others have it at places 0, 1 and 2.
            mistake = None if n % 4 == 3 else n % 4
            steps = [f"{n} + {k} = {'wrong' if k == mistake else n + k}" for k in range(4)]
            row = {"input": f"{task} {n}", "steps": steps, "mistake_index": mistake, "target": "x"}
            rows.append(row)
        (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_steps_after_the_mistake_have_no_label() -> None:
    assert Trace("t", "p", ("a", "b", "c", "d"), 2).labels == [1, 1, 0]
    assert Trace("t", "p", ("a", "b"), None).labels == [1, 1]


def test_a_lesson_ends_with_its_last_labelled_step() -> None:
    tokenizer = tiny_tokenizer()
    trace = Trace("t", "6 * 7?", ("first", "second one", "third", "fourth"), 2)
    prompt, completion, ends, labels = lesson(tokenizer, trace, 1000)
    text = tokenizer.decode(prompt + completion)
    assert text == "<|user|>6 * 7?<|assistant|>first\nsecond one\nthird\n"
    assert [tokenizer.decode(completion[: end + 1]) for end in ends] == [
        "first\n",
        "first\nsecond one\n",
        "first\nsecond one\nthird\n",
    ]
    assert labels == [1, 1, 0]
    whole = len(prompt) + len(completion)
    assert lesson(tokenizer, trace, whole) == (prompt, completion, ends, labels)
    without_last_step = (prompt, completion[: ends[1] + 1], ends[:2], [1, 1])
    assert lesson(tokenizer, trace, whole - 1) == without_last_step
    # The prompt leaves no room for a step.
    assert lesson(tokenizer, trace, len(prompt))[1:] == ([], [], [])


@pytest.mark.parametrize(
    "scores", [*itertools.permutations([-3.0, -0.2, 0.0, 1.0]), (4.0, 9.0, 5.0), (-90.0, -95.0)]
)
def test_the_first_mistake_is_the_likeliest_one(
    scores: tuple[float, ...],
) -> None:
    # Brute force, with the formula as it is written.
    probabilities = [1 / (1 + math.exp(-score)) for score in scores]
    likelihoods = [(1 - p) * math.prod(probabilities[:k]) for k, p in enumerate(probabilities)]
    assert first_mistake(scores) == max(range(len(scores)), key=likelihoods.__getitem__)


def test_what_is_reported() -> None:
    steps = ("a", "b", "c", "d")
    train = []
    for place in (1, 1, 3, None):
        train.append(Trace("t", "p", steps, place))
    held_out = []
    for size, place in ((4, 1), (2, 1), (4, 3), (4, None)):
        held_out.append(Trace("t", "p", steps[:size], place))
    scores = [[5.0, -5.0, 0.0, 0.0], [-5.0, 5.0], [5.0, 5.0, 6.0, -5.0], [2.0, 5.0, 2.0, -5.0]]
    results = judge(train, held_out, scores)
    assert results["t"] == results["all"]
    result = results["t"]
    assert (result["right"], result["total"]) == (2, 3)
    assert result["chance"] == pytest.approx((1 / 4 + 1 / 2 + 1 / 4) / 3)
    assert result["last_step"] == pytest.approx(2 / 3)
    assert result["frequent_place"] == pytest.approx(2 / 3)
    # At place 1 the scores 5, 5 of right steps meet -5, 5 of mistakes; at place 3, -5 meets -5.
    assert result["same_place"] == pytest.approx((1 + 0.5 + 1 + 0.5 + 0.5) / 5)


def test_tasks_share_no_trace_between_training_and_held_out(recipe: ModuleType, data: Path) -> None:
    settings = recipe.flags().parse_args(["--dataset_path", str(data), *FLAGS])
    train, held_out = split(read(data), settings)
    assert (len(train), len(held_out)) == (48, 16) and not {*train} & {*held_out}
    assert split(read(data), settings) == (train, held_out)


@pytest.mark.long
def test_a_run_learns_to_find_mistakes(
    recipe: ModuleType,
    data: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--dataset_path", str(data), "--model_name_or_path", str(tiny_checkpoint), *FLAGS]
    recipe.main([*flags, "--output_dir", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "48 traces" in said
    assert "step 48/48" in said
    assert "first mistakes of held-out traces" in said
    assert "first mistakes of held-out traces" in (tmp_path / "run" / "report.html").read_text()
    results: dict[str, Any] = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]
    assert set(results) == {"sums", "words", "all"}
    assert results["all"]["share"] > 0.9 > 0.5 > results["all"]["chance"]
    AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "reward_model", num_labels=1
    )
    with pytest.raises(SystemExit):
        recipe.main([*flags, "--output_dir", str(tmp_path / "run")])
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row", ['{"input": "x"}', "{", '{"input": "x", "steps": ["a"], "mistake_index": 1}']
)
def test_rows_of_another_form_are_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "task.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"task\.jsonl:1: .*expected"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"holds no \*\.jsonl"):
        read(tmp_path / "nowhere")
