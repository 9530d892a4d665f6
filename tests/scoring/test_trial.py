"""What `grpo-hf rewards check` finds: rewards that pay for nothing, that vary, or that compare."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, ProcessorMixin

from grpo_hf import GRPOConfig, reward_settings
from grpo_hf.cli import main
from grpo_hf.scoring.finding import Finding
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.scored_reward import ScoredReward
from grpo_hf.scoring.trial import dry_run, examine, prepare_rewards

ROWS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(1, 7)]
CHAT = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]


def found(*rewards: Any, rows: list[dict[str, Any]] = ROWS) -> list[Finding]:
    return examine([load_reward(reward) for reward in rewards], rows, timeout=5)


@pytest.mark.parametrize("rows", [ROWS, CHAT], ids=["text", "chat"])
def test_a_sound_reward_has_no_notes(rows: list[dict[str, Any]]) -> None:
    (finding,) = found("gsm8k", rows=rows)
    assert finding.pays == {
        "gold answer": 1.0,
        "empty": 0.0,
        "repeated": 0.0,
        "prompt copied": 0.0,
        "another's answer": 0.0,
        "own and another's": 0.0,
    }
    assert (finding.lowest, finding.highest, finding.deterministic, finding.alone) == (
        0.0,
        1.0,
        True,
        True,
    )
    assert finding.exploited == () and finding.notes() == []


def test_what_pays_for_nothing_is_named() -> None:
    def concise(completions: list[Any], **_: Any) -> list[float]:
        return [-len(text) / 1000 for text in completions]

    def verbose(completions: list[Any], **_: Any) -> list[float]:
        return [min(1.0, len(text) / 1000) for text in completions]

    def parrot(completions: list[Any], prompts: list[Any], **_: Any) -> list[float]:
        return [float(prompt in text) for text, prompt in zip(completions, prompts, strict=True)]

    short, long, copy = found(concise, verbose, parrot)
    assert short.exploited == ("empty",)
    assert set(long.exploited) == set(long.pays) - {"gold answer", "empty"}
    assert copy.exploited == ("prompt copied",)
    assert "parrot pays for: prompt copied." in copy.notes()[0]


def test_a_reward_that_pays_for_naming_several_answers_is_found() -> None:
    def mentioned(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = zip(completions, answer, strict=True)
        return [float(right in re.findall(r"\d+", text)) for text, right in texts]

    def first(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = zip(completions, answer, strict=True)
        return [float(re.findall(r"\d+", text)[:1] == [right]) for text, right in texts]

    any_of_them, one = found(mentioned, first)
    assert any_of_them.pays["own and another's"] == 1.0
    assert any_of_them.exploited == ("own and another's",)
    # It reads one answer, and which of them is no matter.
    assert one.exploited == ()


def test_what_a_row_s_neighbour_has_right_is_no_exploit() -> None:
    rows = [{"prompt": f"{n} + 2?", "answer": "4"} for n in range(4)]
    (finding,) = found("gsm8k", rows=rows)
    assert finding.pays["another's answer"] is None and not finding.exploited


def test_chance_and_comparing_are_found() -> None:
    def moody(completions: list[Any], **_: Any) -> list[float]:
        return [random.SystemRandom().random() for _ in completions]

    def longest(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(text) == max(map(len, completions))) for text in completions]

    rows = [{"prompt": "?", "answer": "1" * n} for n in range(1, 5)]
    by_chance, compares = found(moody, longest, rows=rows)
    assert not by_chance.deterministic and "the second time" in " ".join(by_chance.notes())
    assert not compares.alone and "batched=False" in " ".join(compares.notes())


def test_what_fails_is_said_beside_what_works() -> None:
    def broken(completions: list[Any], **_: Any) -> list[float]:
        return [1 / len(text) for text in completions]

    finding, sound = found(broken, "gsm8k")
    note = finding.notes()[0]
    assert note.startswith("broken fails on empty: test_trial.py:")
    assert note.endswith(": ZeroDivisionError: division by zero") and "\n" not in note
    assert finding.pays["empty"] is None and not sound.notes()


def test_a_reward_of_a_wrong_length_is_not_said_to_compare() -> None:
    """Called alone its one value is right, and among others it is missing the rest."""

    def one(completions: list[Any], **_: Any) -> list[float]:
        return [1.0]

    (finding,) = found(one)
    notes = " ".join(finding.notes())
    assert "it returned 1 value for 6 completions" in notes and "compares" not in notes


def test_what_fails_on_an_empty_text_may_compare_all_the_same() -> None:
    def shorter(completions: list[Any], **_: Any) -> list[float]:
        return [len(text) / max(map(len, completions)) for text in completions]

    rows = [{**row, "answer": row["answer"] * (place + 1)} for place, row in enumerate(ROWS)]
    (finding,) = found(shorter, rows=rows)
    assert finding.failures and "it compares them" in " ".join(finding.notes())


def test_a_failure_is_a_line_with_its_place_and_the_kinds_it_is_on() -> None:
    def typo(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(completons)) for _ in completions]  # type: ignore[name-defined]  # noqa: F821

    def whole(completions: list[Any], **_: Any) -> list[float]:
        return [float(int(text)) for text in completions]

    mistyped, numbers = found(typo, whole)
    note = mistyped.notes()[0]
    assert note.startswith("typo fails on every kind of answer: test_trial.py:")
    assert note.endswith("NameError: name 'completons' is not defined. Did you mean 'completions'?")
    failing = numbers.notes()[0]
    # The same mistake with three texts in its message, one of them of 40,000 characters.
    assert failing.startswith(
        "whole fails on empty, repeated, prompt copied, own and another's: test_trial.py:"
    )
    assert "ValueError: invalid literal for int()" in failing and len(failing) < 250


FLOATS = [{**row, "answer": float(row["answer"])} for row in ROWS]


def as_text(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """Compare the last whole number with a gold answer that has a decimal point."""
    right = []
    for text, gold in zip(completions, answer, strict=True):
        numbers = re.findall(r"\d+", text)
        right.append(float(bool(numbers) and numbers[-1] == str(gold)))
    return right


@pytest.mark.long
def test_a_reward_that_pays_nothing_for_right_answers_is_named() -> None:
    (finding,) = found(as_text, rows=FLOATS)
    (note,) = finding.notes()
    assert note.startswith(
        "as_text pays nothing for right answers: answer of row 0 is 2.0 (a float), and the "
        "completion '2.0' earns 0."
    )
    rows = [*ROWS[:3], {**ROWS[3], "answer": "about 8 apples"}]
    (partly,) = found(as_text, rows=rows)
    assert "pays nothing for 1 of 4 right answers: answer of row 3 is 'about 8" in partly.notes()[0]


def test_forms_and_penalties_are_not_taken_for_it() -> None:
    def after_hashes(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
        return [
            float(text.endswith(f"#### {gold}"))
            for text, gold in zip(completions, answer, strict=True)
        ]

    def boxed(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
        return [
            float(f"\\boxed{{{gold}}}" in text)
            for text, gold in zip(completions, answer, strict=True)
        ]

    def penalty(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
        return [-float(text != gold) for text, gold in zip(completions, answer, strict=True)]

    for finding in found(after_hashes, boxed, penalty, "answer_format", "repetition"):
        assert finding.unpaid is None, finding.reward.name


def test_a_run_says_so_before_a_model_loads(caplog: pytest.LogCaptureFixture) -> None:
    for rows, said in ((FLOATS, True), (ROWS, False)):
        caplog.clear()
        entry = ScoredReward(load_reward(as_text))
        dry_run([entry], rows[:2], strict=True)
        assert ("as_text pays nothing for right answers" in caplog.text) == said


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text(
        "".join(f'{{"question": "{n} + 1?", "answer": "#### {n + 1}"}}\n' for n in range(20))
    )
    (tmp_path / "mine.py").write_text(
        "def polite(completions, **_):\n    return [1.0 for _ in completions]\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"dataset_path: {tmp_path}\nmodel_name_or_path: any/model\neval_rows: 0\n"
        f"output_dir: {tmp_path}/run\n"
        "rewards: [gsm8k, './mine.py:polite']\nuse_cpu: true\n"
    )
    main(["rewards", "check", str(recipe), "--rows", "4"])
    shown = capsys.readouterr().out
    assert "mean reward on 4 rows" in shown and "gsm8k" in shown
    assert "note: polite pays for: empty, repeated, prompt copied, another's answer, " in shown
    assert "own and another's." in shown
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine.py").write_text("def broken(completions, **_):\n    return 1.0\n")
    with pytest.raises(SystemExit) as failed:
        main(["rewards", "check", str(recipe), "--rows", "4", "--rewards", "./mine.py:broken"])
    assert failed.value.code == 2
    with pytest.raises(SystemExit) as left:
        main(["rewards", "check", str(recipe), "--rows", "1"])
    assert left.value.code == 2


@pytest.mark.parametrize("inside", [False, True], ids=["tokenizer", "processor"])
@pytest.mark.parametrize("rows", [ROWS, CHAT], ids=["text", "chat"])
def test_the_trial_s_tokens_are_those_of_its_text(
    rows: list[dict[str, Any]], inside: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    seen = []

    @reward_settings(in_process=True)
    def watched(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.extend(zip(completions, completion_ids, strict=True))
        return [0.0] * len(completions)

    given = tokenizer
    if inside:
        given = ProcessorMixin.__new__(ProcessorMixin)
        given.tokenizer = tokenizer
    constructor = {
        "reward_funcs": watched,
        "train_dataset": Dataset.from_list(rows),
        "processing_class": given,
    }
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True)
    prepare_rewards({**constructor, "args": args})
    assert len(seen) == 2
    for completion, ids in seen:
        assert tokenizer.decode(ids) == (completion if rows is ROWS else completion[0]["content"])


def test_a_trial_calls_nothing_that_it_might_change(tmp_path: Path) -> None:
    calls = []

    def counts(completions: list[Any], **_: Any) -> list[float]:
        calls.append(len(completions))
        return [float(len(calls))] * len(completions)

    constructor = {"reward_funcs": counts, "train_dataset": Dataset.from_list(ROWS)}
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True)
    functions, rewards = prepare_rewards({**constructor, "args": args})
    assert functions == [counts] and rewards.process is None and calls == []
    named = {**constructor, "reward_funcs": reward_settings(in_process=True)(counts)}
    prepare_rewards({**named, "args": args})
    assert calls == [2]


def test_where_a_reward_is_called_is_said() -> None:
    words = ["4"]

    def listed(completions: list[Any], **_: Any) -> list[float]:
        return [0.0 for text in completions if words]

    (finding,) = found(listed)
    said = " ".join(finding.notes())
    assert "called in the trainer's process: it refers to words, a list" in said


@pytest.mark.long
@pytest.mark.parametrize("column", ["label", "target", "gold", "Reading"])
def test_the_gold_answer_is_found_under_any_name_that_a_reward_reads(column: str) -> None:
    source = (
        f"def same(completions, {column}, **_):\n"
        f"    return [float(a == str(b)) for a, b in zip(completions, {column})]\n"
    )
    names: dict[str, Any] = {}
    exec(source, names)
    # A column that is called as gold answers are, and holds something else.
    rows = [{"prompt": f"{n}?", "solution": "unlike", column: n} for n in range(4)]
    for given in (rows, [{"prompt": row["prompt"], column: row[column]} for row in rows]):
        (finding,) = found(names["same"], rows=given)
        assert finding.pays["gold answer"] == 1.0 and finding.gold_column == column
        said = any(f"reads {column}" in note for note in finding.notes())
        assert said == (column == "Reading")


def test_what_a_reward_reads_beside_the_answer_is_no_gold_answer() -> None:
    def same(completions: list[Any], answer: list[str], tests: list[Any], **_: Any) -> list[float]:
        return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]

    rows = [{**row, "tests": "assert True", "checks": ["a"]} for row in ROWS]
    (finding,) = found(same, rows=rows)
    assert finding.gold_column == "answer" and finding.notes() == []


def test_what_right_answers_earn_is_not_claimed_without_any() -> None:
    def brief(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(text) < 40) for text in completions]

    rows = [{"prompt": f"What is {n} and {n}?"} for n in range(4)]
    (finding,) = found(brief, rows=rows)
    assert finding.pays["gold answer"] is finding.pays["own and another's"] is None
    assert finding.notes()[0].startswith("brief reads no column that may hold right answers")


def test_how_a_reward_for_mentions_is_mended_is_said() -> None:
    def mentions(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        return [float(gold in text) for text, gold in zip(completions, answer, strict=True)]

    (finding,) = found(mentions)
    (note,) = finding.notes()
    assert "own and another's: a completion that names the right answer and another row's" in note


def test_a_reward_whose_wrong_answers_would_be_called_right_is_named() -> None:
    def double(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        marks = []
        for text, gold in zip(completions, answer, strict=True):
            marks.append(float(text.strip().isdigit()) + float(text == gold))
        return marks

    (finding,) = found(double, rows=[{"prompt": f"{n}?", "answer": str(n)} for n in range(4)])
    assert (finding.pays["gold answer"], finding.pays["another's answer"]) == (2.0, 1.0)
    assert finding.exploited == ("another's answer",)
    assert any(note.startswith("double pays 2.00 for right answers.") for note in finding.notes())
