"""The running sums are right, repeatable and as long as they say; splits share no problem."""

import re
from itertools import islice

import pytest

from grpo_hf.demo.running_sums import running_sums

SPLITS = ("cold_start", "train", "test")


def problems(split, count=500, **options):
    return list(islice(running_sums(split, **options), count))


@pytest.mark.parametrize("split", SPLITS)
def test_every_line_goes_on_from_the_total_before_it(split):
    for row in problems(split):
        numbers = list(map(int, re.findall(r"\d+", row["question"])))
        *working, last = row["answer"].splitlines()
        assert last == f"#### {sum(numbers)}"
        total, *added = numbers
        for line, number in zip(working, added, strict=True):
            assert line == f"{total}+{number}={total + number}"
            total += number


def test_splits_share_no_problem():
    questions = {split: {row["question"] for row in problems(split, 3000)} for split in SPLITS}
    assert min(map(len, questions.values())) > 2900
    assert not questions["train"] & questions["test"]
    assert not questions["cold_start"] & (questions["test"] | questions["train"])


def test_seed_and_largest_decide_the_rows():
    assert problems("train", 20, seed=1) == problems("train", 20, seed=1)
    assert problems("train", 20, seed=1) != problems("train", 20, seed=2)
    rows = problems("train", 200, largest=5)
    assert set(re.findall(r"\d", "".join(row["question"] for row in rows))) == set("12345")
