"""Sampling by groups is measured before it is used: what is right goes fast, the rest TRL's way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from support.models import ARCHITECTURES, decoder, lora
from support.sampling import PROMPTS, completions
from transformers import GenerationConfig

from grpo_hf import GRPOTrainer
from grpo_hf.rollout import decoding, generate, self_check
from grpo_hf.rollout.generate import GroupedSampling
from grpo_hf.trl_seam import cache_argument

IDS = torch.tensor([[5, 6, 7, 8]] * 3 + [[0, 0, 9, 10]] * 3)
MASK = (IDS > 0).long()


def settings(**others: Any) -> GenerationConfig:
    greedy = {"do_sample": False, "pad_token_id": 0, "eos_token_id": [2, 50, 51]}
    return GenerationConfig(**({"max_new_tokens": 12} | greedy | others))


def sampled(grouped: GroupedSampling, model: Any, **others: Any) -> torch.Tensor:
    with torch.no_grad(), grouped.serving(model):
        return model.generate(
            input_ids=IDS, attention_mask=MASK, generation_config=settings(**others)
        )


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The ways that are measured to be right, in order; `None` is TRL's."""
    measured = GroupedSampling._measured
    found = []

    def recorded(*arguments: Any) -> Any:
        way, reason = measured(*arguments)
        found.append(way)
        return way, reason

    monkeypatch.setattr(GroupedSampling, "_measured", recorded)
    return found


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize(
    "architecture",
    [*ARCHITECTURES, "Gemma", "Gemma2", "GPTNeoX", "StableLm", "Olmo2", "Starcoder2"],
)
def test_what_is_known_to_be_right_takes_the_fastest_way(
    architecture: str, adapter: bool, ways: list[Any]
) -> None:
    """An error of this library would otherwise read as one of the model."""
    model = decoder(architecture)
    if adapter:
        model = get_peft_model(model, lora())
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    expected = model.generate(input_ids=IDS, attention_mask=MASK, generation_config=settings())
    assert torch.equal(sampled(GroupedSampling(), model), expected)
    assert ways == [generate._WAYS[0]]


def rows_exchanged(model: Any, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Decode with the states of two rows in each other's place."""
    cache = inputs[cache_argument(inputs)]
    reorder = cache.reorder_cache
    cache.reorder_cache = lambda rows: reorder(rows.flip(0))
    return decoding.sample_groups(model, input_ids, **inputs | {"shares_prefixes": False})


def positions_of_padding(model: Any, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Decode with padding that counts as text."""
    inputs["attention_mask"] = torch.ones_like(input_ids)
    return decoding.sample_groups(model, input_ids, **inputs)


def one_token_less(*arguments: Any, **inputs: Any) -> torch.Tensor:
    return decoding.sample_groups(*arguments, **inputs)[:, :-1]


def a_layer_that_fails(*_: Any, **__: Any) -> torch.Tensor:
    raise IndexError("too many indices")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        (rows_exchanged, "scores by groups are"),
        (positions_of_padding, "scores by groups are"),
        (one_token_less, "other tokens"),
        (a_layer_that_fails, r"IndexError: too many indices"),
    ],
)
def test_a_loop_that_is_wrong_is_found(
    loop: Callable[..., torch.Tensor], reason: str, dtype: torch.dtype
) -> None:
    model = decoder("Qwen2").to(dtype)
    call = {"input_ids": IDS, "attention_mask": MASK, "generation_config": settings()}
    half = dtype == torch.bfloat16
    reference = self_check.Reference(model, model.generate, settings(), call, half=half)
    assert reference.why_not(decoding.sample_groups) is None
    assert reason in str(reference.why_not(loop))


def test_logits_that_are_no_numbers_are_the_same_both_ways() -> None:
    """The run then ends with advice, and not with that of `torch.multinomial`."""
    model = decoder("Llama")
    model.lm_head.weight.data.fill_(float("nan"))
    call = {"input_ids": IDS, "attention_mask": MASK, "generation_config": settings()}
    reference = self_check.Reference(model, model.generate, settings(), call, half=False)
    assert reference.why_not(decoding.sample_groups) is None


def test_the_check_changes_nothing() -> None:
    model = get_peft_model(decoder("GPT2", attn_pdrop=0.1, resid_pdrop=0.1), lora(lora_dropout=0.1))
    model.train()
    model.base_model.model.transformer.h[1].eval()
    given = settings(do_sample=True)
    # PEFT leaves an attribute behind at the first call of its `generate`.
    model.generate(input_ids=IDS, attention_mask=MASK, generation_config=given)
    before = (
        [module.training for module in model.modules()],
        [dict(vars(module)) for module in model.modules()],
        {name: weight.clone() for name, weight in model.state_dict().items()},
        model.generation_config.to_dict(),
        given.to_dict(),
        torch.get_rng_state(),
    )
    call = {"input_ids": IDS, "attention_mask": MASK, "generation_config": given}
    grouped = GroupedSampling()
    way, reason = grouped._measured(model, model.generate, given, call)
    assert (way, reason) == (generate._WAYS[0], None)
    modes, attributes, weights, own, settings_before, chance = before
    assert [module.training for module in model.modules()] == modes
    assert [vars(module).keys() for module in model.modules()] == [
        each.keys() for each in attributes
    ]
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert model.generation_config.to_dict() == own
    assert given.to_dict() == settings_before
    assert torch.equal(torch.get_rng_state(), chance)


def test_the_draws_of_a_run_are_those_without_a_check() -> None:
    model = decoder("Llama")
    grouped = GroupedSampling()
    drawn = []
    for _ in range(2):  # the second time there is nothing to measure
        torch.manual_seed(0)
        drawn.append(sampled(grouped, model, do_sample=True))
    assert torch.equal(*drawn)


def test_a_model_that_cannot_go_by_groups_goes_trls_way_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "sample_groups", rows_exchanged)
    model = decoder("Llama")
    expected = model.generate(input_ids=IDS, attention_mask=MASK, generation_config=settings())
    grouped = GroupedSampling()
    for _ in range(2):
        assert torch.equal(sampled(grouped, model), expected)
    assert len(caplog.messages) == 1
    assert "Grouped rollouts are off" in caplog.text
    assert "About this model with these settings: its scores by groups are" in caplog.text


def test_where_generate_fails_it_fails_as_in_trl(caplog: pytest.LogCaptureFixture) -> None:
    model = decoder("Llama")
    wrong = {"stop_strings": ["a"]}  # and no tokenizer
    with pytest.raises(Exception) as expected:
        model.generate(input_ids=IDS, attention_mask=MASK, generation_config=settings(**wrong))
    with pytest.raises(expected.type) as found:
        sampled(GroupedSampling(), model, **wrong)
    assert str(found.value) == str(expected.value)
    assert "`generate` itself fails" in caplog.text


def test_what_decides_is_measured_again(ways: list[Any]) -> None:
    model = get_peft_model(decoder("Llama"), lora())
    grouped = GroupedSampling()
    sampled(grouped, model)
    for others in ({}, {"max_new_tokens": 5}, {"temperature": 0.7}):
        sampled(grouped, model, **others)
    assert len(ways) == 1
    sampled(grouped, model, no_repeat_ngram_size=2)
    assert len(ways) == 2
    with model.disable_adapter():
        sampled(grouped, model)
    assert len(ways) == 3
    with torch.autocast("cpu", torch.bfloat16):
        sampled(grouped, model)
    assert len(ways) == 4


class SecondProcess:
    """An accelerator of a run in which another process is the main one."""

    is_main_process = False
    mixed_precision = "no"

    def unwrap_model(self, model: Any) -> Any:
        return model


class Between:
    """What processes tell each other: this one, and another that has these reasons."""

    def __init__(self, others: list[str]) -> None:
        self.others = others
        self.told: list[str] = []

    def gather_list(self, mine: list[str]) -> list[str]:
        self.told += mine
        return mine + self.others


def test_a_reason_is_logged_once_whichever_process_has_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No process waits for another while it samples: their prompts, and so their ways, differ."""
    second: Any = SecondProcess()
    grouped = GroupedSampling(accelerator=second)
    sampled(grouped, decoder("Llama"), num_beams=2)
    assert not caplog.records
    run: Any = Between([])
    grouped.share_reasons(run)
    assert len(run.told) == 1 and "beam search" in run.told[0]
    main = GroupedSampling()
    for _ in range(2):
        main.share_reasons(Between(run.told))
    assert caplog.text.count("beam search (on another process)") == 1
    caplog.clear()
    # What both of them have is said as the main process's own.
    main = GroupedSampling()
    sampled(main, decoder("Llama"), num_beams=2)
    main.share_reasons(Between(run.told))
    assert caplog.text.count("beam search") == 1 and "another" not in caplog.text


def test_the_ends_of_the_runs_prompts_are_what_is_measured() -> None:
    ids = torch.arange(3, 43)[None].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :35] = 0
    block, seen = self_check._ends_of_prompts(ids, mask)
    longest, shorter = self_check._LENGTHS[0], 5
    assert block[0].tolist() == ids[0, -longest:].tolist()
    assert block[1, -shorter:].tolist() == ids[1, -shorter:].tolist()
    assert seen.sum(1).tolist() == [longest, shorter] * 2


@pytest.mark.parametrize("rows", [[[7]], [[7], [8]], [[7, 8]], [[7, 8, 9], [9]]])
def test_prompts_are_ragged_whatever_the_run_has(rows: list[list[int]]) -> None:
    widest = max(map(len, rows))
    padded = [[0] * (widest - len(row)) + row for row in rows]
    ids = torch.tensor(padded)
    _, seen = self_check._ends_of_prompts(ids, (ids > 0).long())
    first, second = seen.sum(1)[:2].tolist()
    assert first > second > 0


def test_the_check_costs_little() -> None:
    """Forward passes of the check: three ways to write a few tokens, and nothing else."""
    model = decoder("Llama")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    sampled(GroupedSampling(), model, max_new_tokens=1)
    assert len(calls) <= 2 * self_check._TOKENS + 1


def test_a_trainer_measures_once_for_its_run(
    sampler: Callable[..., GRPOTrainer], ways: list[Any]
) -> None:
    trainer = sampler()
    for _ in range(2):
        completions(trainer, PROMPTS, grouped=True)
    assert ways == [generate._WAYS[0]]
