"""The embedded problems are right, endless and repeatable; splits share no pair of numbers."""

import re
import subprocess
import sys
from itertools import islice

import pytest

from grpo_hf.demo.word_problems import split_of, word_problems

SPLITS = ("cold_start", "train", "test")


def problems(split, count=3000, **options):
    return list(islice(word_problems(split, **options), count))


def operands(row):
    a, b = map(int, re.findall(r"\d+", row["question"]))
    return a, b


def test_splits_share_no_pair_of_numbers():
    pairs = {split: {operands(row) for row in problems(split)} for split in SPLITS}
    assert min(map(len, pairs.values())) > 500
    assert not pairs["train"] & pairs["test"]
    assert not pairs["cold_start"] & pairs["test"]
    assert not pairs["cold_start"] & pairs["train"]


def test_every_pair_has_one_split_and_every_split_its_share():
    counts = dict.fromkeys(SPLITS, 0)
    for a in range(1, 100):
        for b in range(1, 100):
            counts[split_of(a, b)] += 1
    total = 99 * 99
    for split, eighths in {"test": 1, "cold_start": 3, "train": 4}.items():
        assert counts[split] == pytest.approx(total * eighths / 8, rel=0.1)


@pytest.mark.parametrize("split", SPLITS)
def test_every_line_of_the_working_is_right(split):
    for row in problems(split, 500):
        a, b = operands(row)
        *working, last = row["answer"].splitlines()
        assert last == f"#### {a + b}"
        assert len(working) == 3
        for line in working:
            left, right, result = map(int, re.fullmatch(r"(\d+) \+ (\d+) = (\d+)", line).groups())
            assert left + right == result
        assert working[-1].endswith(f"= {a + b}")


def test_seed_and_split_decide_the_rows():
    assert problems("train", 20, seed=1) == problems("train", 20, seed=1)
    assert problems("train", 20, seed=1) != problems("train", 20, seed=2)


def test_largest_is_the_largest():
    numbers = {number for row in problems("train", 200, largest=5) for number in operands(row)}
    assert numbers == {1, 2, 3, 4, 5}


def test_the_same_rows_in_every_process():
    """hash() of text differs from process to process; the splits must not."""
    program = (
        "from grpo_hf.demo.word_problems import word_problems; "
        "print(next(word_problems('test', seed=7)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == str(problems("test", 1, seed=7)[0])
