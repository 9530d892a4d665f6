"""Labels of steps are compared with `generate`'s continuations, and with the judge's inputs."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from grpo_hf import completion_text, reward_settings
from grpo_hf.errors import ConfigError
from grpo_hf.reward_models.step_labels import labelled_steps
from grpo_hf.scoring.run_rewards import scored_rewards
from grpo_hf.scoring.scored_reward import ScoredReward

ROWS = [{"prompt": f"{n} + {n} = ", "answer": "x" * n} for n in range(1, 7)]
CHAT = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
SETTINGS = {"steps": "o", "max_new_tokens": 12}  # an untrained model writes no lines


@reward_settings(in_process=True)
def vowels(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Return rewards from 0 to 1 that differ between completions and need a column of the data."""
    counts = [sum(map(completion_text(completion).count, "aeiou")) for completion in completions]
    return [1 - 1 / (1 + count + len(a)) for count, a in zip(counts, answer, strict=True)]


@reward_settings(in_process=True)
def picky(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """Judge no completion of the row "x", and of the row "xx" only those with an "a"."""
    rewards: list[float | None] = []
    for value, text, a in zip(vowels(completions, answer), completions, answer, strict=True):
        unjudged = a == "x" or (a == "xx" and "a" not in text)
        rewards.append(None if unjudged else value)
    return rewards


def judge(function: Any = vowels) -> ScoredReward:
    return scored_rewards([function])[0]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


def greedy(model: Any, begun: list[int], tokens: int) -> list[int]:
    with torch.no_grad():
        whole = model.generate(
            torch.tensor([begun]), do_sample=False, max_new_tokens=tokens, pad_token_id=0
        )
    return whole[0, len(begun) :].tolist()


def ends_by_hand(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return the tokens that write an "o", and the last token."""

    def upto(token: int) -> str:
        return tokenizer.decode(ids[: token + 1], skip_special_tokens=True)

    text = upto(len(ids))
    cuts = [k + 1 for k in range(len(text)) if text[k] == "o" and text[k + 1 :].strip()]
    written = [next(k for k in range(len(ids)) if upto(k).startswith(text[:c])) for c in cuts]
    return [*written, len(ids) - 1]


@pytest.mark.long
@pytest.mark.parametrize("rows", [ROWS, CHAT], ids=["text", "chat"])
def test_values_are_those_of_greedy_continuations(
    erratic_model: Any, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    """At a temperature near 0 all continuations are the greedy one.

    One token of the first continuation is made an end of the turn.
    """
    if rows is CHAT:
        asked = [
            tokenizer.apply_chat_template(r["prompt"], add_generation_prompt=True)["input_ids"]
            for r in rows
        ]
    else:
        asked = [tokenizer(row["prompt"]).input_ids for row in rows]
    stop = greedy(erratic_model, asked[0], 12)[7]
    erratic_model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    cold = {"sampling": {"temperature": 1e-6}, **SETTINGS}
    found = labelled_steps(
        erratic_model, tokenizer, rows, judge(), samples=2, n=3, batch_size=5, **cold
    )
    assert found.prompt_ids == [ids for ids in asked for _ in range(2)]
    answers = [row["answer"] for row in rows for _ in range(2)]
    several, labels = 0, zip(*vars(found).values(), answers, strict=True)
    for prompt, ids, ends, values, answer in labels:
        assert ids == greedy(erratic_model, prompt, 12)
        assert ends == ends_by_hand(tokenizer, ids)
        for end, value in zip(ends, values, strict=True):
            whole = ids[: end + 1]
            if len(whole) < len(ids):
                whole += greedy(erratic_model, [*prompt, *whole], 12 - len(whole))
                several += 1
            assert value == pytest.approx(
                vowels([tokenizer.decode(whole, skip_special_tokens=True)], [answer])[0]
            )
    assert several > 4
    assert found.completion_ids[0][-1] == stop and max(map(len, found.completion_ids)) == 12


def test_a_value_is_the_mean_over_what_the_judge_was_shown(
    erratic_model: Any, tokenizer: Any
) -> None:
    shown: dict[tuple[str, tuple[int, ...]], list[float]] = defaultdict(list)

    @reward_settings(in_process=True, batched=True)
    def watched(
        prompts: list[str], completions: list[Any], completion_ids: Any, answer: list[str]
    ) -> list[float]:
        values = vowels(completions, answer)
        for prompt, text, ids, value in zip(
            prompts, completions, completion_ids, values, strict=True
        ):
            assert text == tokenizer.decode(ids, skip_special_tokens=True) and len(ids) <= 12
            shown[prompt, tuple(ids)].append(value)
        return values

    found = labelled_steps(
        erratic_model,
        tokenizer,
        ROWS,
        judge(watched),
        samples=4,
        n=6,
        batch_size=8,
        seed=3,
        **SETTINGS,
    )
    prompts = [row["prompt"] for row in ROWS for _ in range(4)]
    own = {(prompt, tuple(ids)) for prompt, ids in zip(prompts, found.completion_ids, strict=True)}
    assert len(own) == 24  # each sampled once: the rest of what was shown are continuations
    inner = 0
    for prompt, ids, ends, values in zip(prompts, *list(vars(found).values())[1:], strict=True):
        assert values[-1] == shown[prompt, tuple(ids)][0]
        for end, value in zip(ends[:-1], values[:-1], strict=True):
            begun = ids[: end + 1]
            after = []
            for (other_prompt, other_ids), rewards in shown.items():
                if other_prompt == prompt and list(other_ids[: end + 1]) == begun:
                    after += rewards
            after.remove(values[-1])  # the sample itself
            if len(after) == 6:  # no longer beginning was continued
                assert value == pytest.approx(sum(after) / 6)
                inner += 1
    assert inner > 4


def test_equal_prompts_with_other_answers_are_labelled_apart(
    erratic_model: Any, tokenizer: Any
) -> None:
    """Sampling is greedy, so that all samples are the same."""

    @reward_settings(in_process=True)
    def gold(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        return [len(a) / 10 for a in answer]

    rows = [{"prompt": "1 + 1 = ", "answer": "x" * n} for n in (3, 9)]
    greedily = {"sampling": {"temperature": 1e-6}, "max_new_tokens": 12}
    written = greedy(erratic_model, tokenizer("1 + 1 = ").input_ids, 12)
    found = labelled_steps(
        erratic_model,
        tokenizer,
        rows,
        judge(gold),
        samples=2,
        n=2,
        steps=tokenizer.decode(written[3]),
        **greedily,
    )
    assert found.completion_ids == [written] * 4
    inner = len(found.step_ends[0]) - 1
    assert inner > 0 and found.values == [[0.3] * (inner + 1)] * 2 + [[0.9] * (inner + 1)] * 2


def test_random_numbers_and_modes_are_left_alone(erratic_model: Any, tokenizer: Any) -> None:
    def labels(seed: int, disturb: int) -> Any:
        torch.manual_seed(disturb)
        before = torch.get_rng_state()
        found = labelled_steps(
            erratic_model, tokenizer, ROWS, judge(), samples=2, n=2, seed=seed, **SETTINGS
        )
        assert torch.equal(torch.get_rng_state(), before)
        return found

    erratic_model.train()
    assert labels(0, 1) == labels(0, 2) != labels(1, 1)
    assert erratic_model.training and "generate" not in vars(erratic_model)


def test_what_cannot_be_judged_is_left_out(erratic_model: Any, tokenizer: Any) -> None:
    settings = {"samples": 8, "n": 1, "seed": 1, **SETTINGS}
    whole = labelled_steps(erratic_model, tokenizer, ROWS[:3], judge(), **settings)
    found = labelled_steps(erratic_model, tokenizer, ROWS[:3], judge(picky), **settings)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in found.completion_ids]
    prompts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in found.prompt_ids]
    assert "1 + 1 =" not in {prompt.strip() for prompt in prompts}
    assert (
        found.completion_ids[-8:] == whole.completion_ids[-8:]
        and found.values[-8:] == whole.values[-8:]
    )
    some = list(zip(texts, found.step_ends, found.values, found.completion_ids, strict=True))[:-8]
    assert len(some) > 0
    for text, ends, values, ids in some:
        assert len(ends) == len(values) >= 1 and not any(map(math.isnan, values))
        # The last step has the reward of the whole completion.
        assert ("a" in text) == (ends[-1] == len(ids) - 1)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"n": 0}, {"rows": []}])
def test_numbers_below_one_are_refused(
    erratic_model: Any, tokenizer: Any, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="expected at least 1 of each"):
        labelled_steps(
            erratic_model, tokenizer, **{"rows": ROWS, "judge": judge(), **SETTINGS, **wrong}
        )
