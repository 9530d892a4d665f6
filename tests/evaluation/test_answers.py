"""Tests of the evaluation: intervals against exact ones, answers against a loop without padding."""

import io
import itertools
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import LlamaForCausalLM, set_seed

from grpo_hf.demo.tiny_model import tiny_model, tiny_tokenizer
from grpo_hf.evaluation import comparison
from grpo_hf.evaluation.answers import greedy_completions, right_answers, sampled_completions
from grpo_hf.evaluation.statistics import accuracy, compare, maj_at_k, pass_at_k
from grpo_hf.reporting import report
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.scored_reward import ScoredReward

Z = 1.959964
COUNTS = [
    (right, total) for total in (1, 2, 5, 20, 200) for right in {0, 1, total // 3, total - 1, total}
]
QUESTIONS = [
    "7 + 5?",
    "How many apples does Anna have now, if she had 41 and found 17 more on Tuesday?",
    "Books?",
    "Ben has 3 coins and gets 4 more from Ida. How many coins?",
    "Hugo found 90 shells.",
    "1",
    "Clara has 12 cards and David has 30 cards. How many cards do they have together?",
]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]


def outcomes(right: int, total: int) -> list[bool]:
    return [True] * right + [False] * (total - right)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_as_published(right: int, total: int, low: float, high: float):
    """Compare with table I, method 3, of Newcombe 1998.

    The paper is "Two-sided confidence intervals for the single proportion".
    """
    share = accuracy(outcomes(right, total))
    assert (round(share.low, 4), round(share.high, 4)) == (low, high)
    assert (share.right, share.total, share.value) == (right, total, right / total)


@pytest.mark.parametrize(("right", "total"), COUNTS)
def test_wilson_s_interval_is_what_the_score_test_does_not_reject(right: int, total: int):
    def rejected(p: float) -> bool:
        return abs(right / total - p) > Z * math.sqrt(p * (1 - p) / total)

    def boundary(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return inside

    share = accuracy(outcomes(right, total))
    assert share.low == pytest.approx(boundary(right / total, 0.0), abs=1e-6)
    assert share.high == pytest.approx(boundary(right / total, 1.0), abs=1e-6)


@pytest.mark.parametrize("total", [10, 50, 200])
def test_wilson_s_interval_covers_the_truth_95_times_in_100(total: int):
    """Compute the coverage exactly from the binomial distribution, averaged over accuracies."""
    intervals = [accuracy(outcomes(right, total)) for right in range(total + 1)]

    def coverage(p: float) -> float:
        probability = 0.0
        for right, share in enumerate(intervals):
            if share.low <= p <= share.high:
                probability += math.comb(total, right) * p**right * (1 - p) ** (total - right)
        return probability

    covered = [coverage(p) for p in np.linspace(0.02, 0.98, 97)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.83


def pairs(better: int, worse: int, same: int) -> tuple[list[bool], list[bool]]:
    """Return right answers of base and adapter, with given numbers of each kind of change."""
    base = [False] * better + [True] * worse + [index % 2 == 0 for index in range(same)]
    adapter = [True] * better + [False] * worse + [index % 2 == 0 for index in range(same)]
    return base, adapter


def by_enumeration(changes: list[int]) -> dict[int, float]:
    resamples = itertools.product(changes, repeat=len(changes))
    distribution = {}
    for total, count in Counter(map(sum, resamples)).items():
        distribution[total] = count / len(changes) ** len(changes)
    return distribution


def by_convolution(changes: list[int]) -> dict[int, float]:
    """Return the distribution of a resample's sum: one draw's, convolved with itself n times."""
    n = len(changes)
    one_draw = np.array([changes.count(-1), changes.count(0), changes.count(1)]) / n
    total = np.ones(1)
    for _ in range(n):
        total = np.convolve(total, one_draw)
    return dict(zip(range(-n, n + 1), total, strict=True))


@pytest.mark.parametrize(
    ("better", "worse", "same"),
    [(2, 1, 2), (1, 0, 4), (4, 1, 0), (3, 2, 0), (9, 4, 27), (30, 3, 7), (1, 1, 38)],
)
def test_the_paired_interval_is_that_of_the_exact_bootstrap(better: int, worse: int, same: int):
    base, adapter = pairs(better, worse, same)
    changes = [int(after) - int(before) for before, after in zip(base, adapter, strict=True)]
    exact = (by_enumeration if len(changes) <= 5 else by_convolution)(changes)
    result = compare(base, adapter)
    assert result.difference == pytest.approx((better - worse) / len(base))
    # Four standard errors of a tail that is estimated from 10,000 resamples.
    error = 4 * math.sqrt(0.025 * 0.975 / 10_000)
    slack = 1e-9
    for bound, tail in ((result.low * len(base), 0.025), (result.high * len(base), 0.975)):
        assert sum(p for total, p in exact.items() if total < bound - slack) <= tail + error
        assert sum(p for total, p in exact.items() if total <= bound + slack) >= tail - error


def test_the_two_ways_to_the_exact_bootstrap_agree():
    changes = [1, 1, 0, -1, 0]
    enumerated = by_enumeration(changes)
    convolved = by_convolution(changes)
    assert {total: p for total, p in convolved.items() if p > 0} == pytest.approx(enumerated)


def test_prompts_that_do_not_change_add_no_spread():
    same = compare(*pairs(0, 0, 50))
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    assert (same.base.right, same.adapter.right) == (25, 25)
    all_better = compare(*pairs(50, 0, 0))
    assert (all_better.difference, all_better.low, all_better.high) == (1.0, 1.0, 1.0)


def test_the_paired_interval_covers_the_truth():
    """Simulate 200 runs of 80 prompts, of which 30% get better and 10% worse.

    The true difference is +0.2.
    """
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        better, worse, same = rng.multinomial(80, [0.3, 0.1, 0.6])
        result = compare(*pairs(better, worse, same))
        covered += result.low <= 0.2 <= result.high
    assert 180 <= covered <= 199


def test_a_comparison_is_the_same_every_time_and_fits_json():
    base, adapter = pairs(9, 4, 27)
    assert compare(base, adapter) == compare(base, adapter)
    found = json.loads(json.dumps(compare(base, adapter).as_dict()))
    assert found["base"]["right"] + 5 == found["adapter"]["right"] and found["base"]["total"] == 40


@pytest.mark.parametrize(("base", "adapter"), [([], []), ([True], []), ([True], [True, False])])
def test_answers_that_do_not_pair_up_are_refused(base: list[bool], adapter: list[bool]):
    with pytest.raises(ValueError, match=f"{len(base)} base and {len(adapter)} adapter answers"):
        compare(base, adapter)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer) -> LlamaForCausalLM:
    """Return a model with varied answers, and with dropout that training mode would switch on."""
    config = tiny_model(tokenizer).config
    config.initializer_range = 0.2
    config.tie_word_embeddings = False
    config.attention_dropout = 0.5
    set_seed(1)
    return LlamaForCausalLM(config).eval()


def one_by_one(model, tokenizer, prompts, max_new_tokens: int) -> list[str]:
    """Return greedy answers by definition: the likeliest token, no batch, padding or cache."""
    answers = []
    for prompt in prompts:
        text = prompt
        if not isinstance(prompt, str):
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text)["input_ids"]
        new = []
        while len(new) < max_new_tokens and tokenizer.eos_token_id not in new:
            with torch.no_grad():
                new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("prompts", [CHATS, QUESTIONS], ids=["chat", "plain"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_greedy_completions_are_those_of_each_prompt_alone(model, tokenizer, prompts, batch_size):
    expected = one_by_one(model, tokenizer, prompts, 12)
    assert len(set(expected)) == len(prompts), "answers that are alike would not show a wrong order"
    found = greedy_completions(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size)
    assert found == expected


def test_a_completion_ends_at_its_own_end_token(model, tokenizer):
    """Check a batch whose answers have different lengths; what follows an end is not used."""
    ends = LlamaForCausalLM(model.config).eval()
    ends.load_state_dict(model.state_dict())
    with torch.no_grad():
        ends.lm_head.weight[tokenizer.eos_token_id] = (
            1.5 * ends.lm_head.weight[tokenizer.eos_token_id]
        )
    expected = one_by_one(ends, tokenizer, CHATS, 24)
    lengths = {len(tokenizer(text)["input_ids"]) for text in expected}
    assert len(lengths) > 2, lengths
    assert greedy_completions(ends, tokenizer, CHATS, max_new_tokens=24, batch_size=4) == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_model_answers_without_dropout_and_keeps_its_mode(model, tokenizer, training: bool):
    expected = one_by_one(model, tokenizer, CHATS[:3], 8)
    model.train(training)
    try:
        found = greedy_completions(model, tokenizer, CHATS[:3], max_new_tokens=8, batch_size=2)
        assert (found, model.training) == (expected, training)
    finally:
        model.eval()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_samples_are_those_of_each_prompt_and_of_their_seed(model, tokenizer, batch_size):
    settings = {"max_new_tokens": 12, "batch_size": batch_size}
    cold = sampled_completions(
        model, tokenizer, CHATS, 3, sampling={"temperature": 1e-4}, seed=0, **settings
    )
    assert cold == [[text] * 3 for text in one_by_one(model, tokenizer, CHATS, 12)]
    before = torch.random.get_rng_state()
    first = sampled_completions(model, tokenizer, CHATS, 3, sampling={}, seed=1, **settings)
    again = sampled_completions(model, tokenizer, CHATS, 3, sampling={}, seed=1, **settings)
    other = sampled_completions(model, tokenizer, CHATS, 3, sampling={}, seed=2, **settings)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == again != other
    assert all(len(set(texts)) == 3 for texts in first)


def graded(prompts, completions, completion_ids, answer, **columns):
    """Pay the full mark for an equal answer; some gold answers ask for half, None or a failure."""
    assert len(prompts) == len(completions) == len(completion_ids) == len(answer)
    assert "prompt" not in columns and "completion" not in columns
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    assert all(isinstance(text, str) or text[0]["role"] == "assistant" for text in completions)
    marks = {"half": 0.5, "unclear": None, "nan": float("nan")}
    rewards = []
    for text, gold in zip(texts, answer, strict=True):
        rewards.append(marks.get(gold, float(text == gold)))
    return rewards


async def graded_later(**columns):
    return graded(**columns)


@pytest.mark.parametrize("reward", [graded, graded_later])
@pytest.mark.parametrize("chat", [True, False])
def test_only_the_full_mark_is_a_right_answer(reward, chat: bool):
    golds = ["4", "5", "half", "unclear", "nan"]
    prompt = CHATS[0] if chat else QUESTIONS[0]
    rows = [{"prompt": prompt, "answer": gold, "completion": "of the dataset"} for gold in golds]
    assert right_answers(ScoredReward(load_reward(reward)), rows, ["4"] * 5) == [
        True,
        False,
        False,
        False,
        None,
    ]


def test_a_reward_may_ask_for_what_the_trainer_passes():
    def curriculum(completions, trainer_state, log_extra, log_metric, **columns):
        log_extra("text", completions)
        log_metric("length", 1.0)
        return [1.0 if trainer_state.global_step == 7 else 0.0 for _ in completions]

    rows = [{"prompt": "?"}] * 2
    state = SimpleNamespace(global_step=7)
    assert right_answers(
        ScoredReward(load_reward(curriculum)), rows, ["a", "b"], trainer_state=state
    ) == [True, True]


def test_base_and_adapter_are_compared_on_their_own_answers(model, tokenizer, tmp_path: Path):
    base = LlamaForCausalLM(model.config).eval()
    base.load_state_dict(model.state_dict())
    expected = {"base": one_by_one(base, tokenizer, CHATS, 6)}
    policy = get_peft_model(
        base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian")
    )
    set_seed(2)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    policy.eval()
    expected["adapter"] = one_by_one(policy, tokenizer, CHATS, 6)
    assert expected["adapter"] != expected["base"]

    # The base is right on the first two questions, the adapter on the last three.
    golds = [*expected["base"][:2], "none", "none", *expected["adapter"][4:]]
    rows = [{"prompt": prompt, "answer": gold} for prompt, gold in zip(CHATS, golds, strict=True)]
    trainer = SimpleNamespace(
        model=policy,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        processing_class=tokenizer,
        max_completion_length=6,
        chat_template_kwargs={},
        args=SimpleNamespace(
            per_device_eval_batch_size=2, per_device_train_batch_size=3, output_dir=str(tmp_path)
        ),
        state=SimpleNamespace(global_step=1),
        is_world_process_zero=lambda: True,
        reward_funcs=[],
    )
    found = comparison.compare_with_base(trainer, Dataset.from_list(rows), load_reward(graded))

    lines = (tmp_path / "evaluation.jsonl").read_text().splitlines()
    records = list(map(json.loads, lines))
    for name, answers in expected.items():
        assert [record[name]["answer"] for record in records] == answers
        right = [answer == gold for answer, gold in zip(answers, golds, strict=True)]
        assert [record[name]["right"] for record in records] == right
        assert getattr(found, name).right == sum(right)
    assert found.difference == pytest.approx((found.adapter.right - found.base.right) / 7)
    assert [record["prompt"] for record in records] == CHATS
    assert one_by_one(policy, tokenizer, CHATS[:1], 6) == expected["adapter"][:1], (
        "the adapter is on again"
    )


def test_the_report_shows_the_comparison_and_where_everything_lies():
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir="runs/[bold]demo"))
    shown = Console(file=io.StringIO(), width=100, highlight=False)
    report.show(compare(*pairs(9, 4, 27)), trainer, load_reward("gsm8k"), shown)
    text = shown.file.getvalue()
    assert (
        "18/40" in text and "23/40" in text and "+0.125" in text and "40 held-out prompts" in text
    )
    for name in ("", "/metrics.jsonl", "/evaluation.jsonl"):
        assert f"runs/[bold]demo{name}\n" in text

    shown = Console(file=io.StringIO(), width=100, highlight=False)
    report.show(None, trainer, load_reward("gsm8k"), shown)
    assert (
        "evaluation.jsonl" not in shown.file.getvalue() and "accuracy" not in shown.file.getvalue()
    )


@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(k: int):
    correct = [outcomes(right, 6) for right in range(7)]
    shares = []
    for row in correct:
        shares.append(np.mean(list(map(any, itertools.combinations(row, k)))))
    assert pass_at_k(correct, k) == pytest.approx(np.mean(shares))


def by_majority(chosen: tuple[tuple[str | None, bool], ...]) -> float:
    """Return the share of the most frequent answers that is right."""
    said = [answer for answer, _ in chosen if answer is not None]
    best = {answer for answer in said if said.count(answer) == max(map(said.count, said))}
    right = {answer for answer in best if (answer, True) in chosen}
    return len(right) / max(1, len(best))


@pytest.mark.parametrize("k", range(1, 7))
def test_maj_at_k_is_the_share_of_choices_whose_majority_is_right(k: int):
    said = [["7", "7", "8", "9", None, "7"], ["1", "2", "1", "2", "3", "3"], [None] * 6, ["5"] * 6]
    correct = [[answer in ("7", "2", "5") for answer in row] for row in said]
    shares = []
    for row, right in zip(said, correct, strict=True):
        choices = itertools.combinations(list(zip(row, right, strict=True)), k)
        shares.append(np.mean(list(map(by_majority, choices))))
    # 4,000 draws have a standard error below 0.004.
    tolerance = 1e-12 if k in (1, 6) else 0.01
    assert maj_at_k(said, correct, k, draws=4000) == pytest.approx(np.mean(shares), abs=tolerance)


def test_what_cannot_be_chosen():
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k} with 2 problems; expected k from 1"):
            pass_at_k([[True] * 5, [False] * 3], k)
