"""Public sets: their rows as questions and gold answers that their rewards can read."""

import os
from pathlib import Path

import pytest

from grpo_hf.data.known_sets import KNOWN_SETS, name_and_path, read_known_set
from grpo_hf.errors import DataError
from grpo_hf.scoring.registry import load_reward

DATA = os.environ.get("GRPO_HF_DATA")
FOLDERS = {
    "gsm8k": ("gsm8k", 1319),
    "math500": ("math500", 500),
    "svamp": ("svamp", 1000),
    "mgsm_en": ("mgsm", 250),
    "mgsm_de": ("mgsm", 250),
    "mgsm_zh": ("mgsm", 250),
    "mbpp": ("mbpp", 500),
}


@pytest.mark.skipif(DATA is None, reason="no public data on this machine (GRPO_HF_DATA)")
@pytest.mark.parametrize("name", FOLDERS)
def test_every_row_of_a_public_set_has_a_gold_answer_that_its_reward_reads(name: str):
    folder, count = FOLDERS[name]
    known = KNOWN_SETS[name]
    split = read_known_set(known, Path(str(DATA)) / folder)
    assert len(split.rows) == count and not split.bad
    reward = load_reward(known.reward)
    rows = [row for row in split.rows if row["question"].strip()]
    assert len(rows) == count
    # Tests are run, which takes long; a few show that they can be.
    rows = rows[:2] if name == "mbpp" else rows
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "question"}
    assert None not in reward(completions=["nothing"] * len(rows), **columns)
    if known.category is not None:
        assert len({row[known.category] for row in rows}) > 2


def test_a_set_of_countdown_problems(tmp_path: Path):
    (tmp_path / "test.jsonl").write_text('{"numbers": [1, 3], "target": 4}\n{"nums": [2, 3]}\n')
    split = read_known_set(KNOWN_SETS["countdown"], tmp_path)
    (row,) = split.rows
    assert row["question"] == "Make 4 from 1, 3."
    (bad,) = split.bad
    assert "target" in bad.reason
    reward = load_reward("countdown")
    assert reward(completions=["<answer>1 + 3</answer>"], numbers=[[1, 3]], target=[4]) == [1.1]
    with pytest.raises(DataError, match="countdown=FOLDER"):
        read_known_set(KNOWN_SETS["countdown"], None)


def test_how_a_set_is_named(tmp_path: Path):
    assert name_and_path("mine=a/b=c.jsonl") == ("mine", Path("a/b=c.jsonl"))
    assert name_and_path("a/mgsm_de.tsv") == ("mgsm_de", Path("a/mgsm_de.tsv"))
    assert name_and_path("data/svamp/test.jsonl")[0] == "svamp"
    assert name_and_path("gsm8k") == ("gsm8k", None)
