"""Packed updates give TRL's numbers: log-probabilities, entropies and gradients, on every kind
of decoder.
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
import trl
from peft import prepare_model_for_kbit_training
from support.models import ARCHITECTURES, HYBRIDS, WINDOW, block, decoder, lora, moved
from transformers import BitsAndBytesConfig

from grpo_hf import GRPOTrainer
from grpo_hf.update import packing_check

MakeTrainer = Callable[..., GRPOTrainer]
BLOCKS = {
    "two ragged groups": (
        [[5, 6, 7, 8, 9, 10, 11]] * 3 + [[14, 13, 12]] * 3,
        [[21, 22, 23, 24, 25, 26], [31], [41, 42], [51, 52, 53], [61, 62, 63, 64, 65], [71, 72]],
    ),
    "completions of one token": ([[5, 6, 7]] * 2 + [[8, 9]] * 2, [[21], [31], [41], [51]]),
    "prompts of one token": ([[5]] * 2 + [[8]] * 2, [[21, 22, 23], [31], [41, 42], [51, 52]]),
    "identical prompts in two groups": ([[5, 6, 7]] * 4, [[21, 22], [31], [21, 22], [51, 52, 53]]),
    "part of a group": ([[5, 6, 7, 8]], [[21, 22, 23]]),
}


def both_ways(
    trainer: GRPOTrainer, rows: Any, *, row_by_row: bool = False
) -> list[tuple[torch.Tensor, ...]]:
    """(log-probabilities, entropies, gradient) of the packed update and of TRL's, for one random
    loss.
    """
    ids, mask, longest = rows
    scored = mask[:, -longest:]
    torch.manual_seed(2)
    weights = torch.randn(scored.shape)
    theirs = trl.GRPOTrainer._get_per_token_logps_and_entropies

    def one_by_one(
        trainer: Any, model: Any, ids: Any, mask: Any, longest: int, **settings: Any
    ) -> Any:
        """TRL's function on rows without padding: it has no position ids, so padding on the left
        shifts positions.
        """
        values = []
        for row, of in zip(ids, mask, strict=True):
            length = int(of[-longest:].sum())
            real = row[of.bool()][None]
            part = theirs(trainer, model, real, torch.ones_like(real), length, **settings)[:2]
            values.append([torch.nn.functional.pad(x, (0, longest - length)) for x in part])
        return [torch.cat(x) for x in zip(*values, strict=True)]

    results = []
    for scorer in (
        type(trainer)._get_per_token_logps_and_entropies,
        one_by_one if row_by_row else theirs,
    ):
        trainer.model.zero_grad()
        values, entropies = scorer(
            trainer, trainer.model, ids, mask, longest, compute_entropy=True
        )[:2]
        (values * weights * scored).sum().backward()
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        results.append(
            ((values * scored).detach(), (entropies * scored).detach(), torch.cat(gradients))
        )
    return results


def assert_equal(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-4)
    assert theirs[2].norm() > 0.1
    assert (ours[2] - theirs[2]).norm() <= 1e-5 * theirs[2].norm()


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *HYBRIDS])
def trained(request: pytest.FixtureRequest, module_trainer: MakeTrainer) -> tuple[str, GRPOTrainer]:
    # PEFT refuses adapters on the projections behind Mamba's scan.
    modules = ["in_proj", "q_proj"] if request.param in ("FalconH1", "NemotronH") else "all-linear"
    adapter = lora(target_modules=modules)
    return request.param, moved(module_trainer(model=decoder(request.param), peft_config=adapter))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_architecture_gives_trls_numbers(trained: tuple[str, GRPOTrainer], name: str) -> None:
    architecture, trainer = trained
    assert trainer.packs
    assert_equal(*both_ways(trainer, block(*BLOCKS[name]), row_by_row=architecture == "GPT2"))


def test_a_group_in_two_blocks_adds_up(module_trainer: MakeTrainer) -> None:
    trainer = moved(module_trainer(model=decoder("Llama"), peft_config=lora()))
    prompts, completions = BLOCKS["two ragged groups"]
    whole = both_ways(trainer, block(prompts, completions))
    ids, mask, longest = block(prompts, completions)
    halves = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, longest, batch_size=2
    )[0]
    one_at_a_time = [
        trainer._get_per_token_logps_and_entropies(
            trainer.model, ids[i : i + 1], mask[i : i + 1], longest
        )[0]
        for i in range(len(ids))
    ]
    for values in (halves, torch.cat(one_at_a_time)):
        torch.testing.assert_close(values * mask[:, -longest:], whole[1][0], rtol=0, atol=1e-4)


SETTINGS: dict[str, dict[str, Any]] = {
    "gradient checkpointing": {"gradient_checkpointing": True},
    "gradient checkpointing, reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "a temperature": {"temperature": 0.6},
    "an entropy bonus": {"entropy_coef": 0.1},
    "a head in float32": {"cast_lm_head_to_fp32": True},
    "full fine-tuning": {"peft_config": None},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("architecture", ["Qwen3", "Mistral", "Lfm2", "Qwen3_5Text", "Bamba"])
def test_every_setting_gives_trls_numbers(
    module_trainer: MakeTrainer, architecture: str, name: str
) -> None:
    if architecture == "Lfm2" and name == "a head in float32":
        pytest.skip("TRL cannot cast the head of LFM2")
    settings = {"model": decoder(architecture), "peft_config": lora()} | SETTINGS[name]
    trainer = moved(module_trainer(**settings, beta=0.0))
    trainer.model.train()
    assert trainer.packs
    assert_equal(*both_ways(trainer, block(*BLOCKS["two ragged groups"])))


def test_logits_that_are_capped_keep_trls_head(module_trainer: MakeTrainer) -> None:
    trainer = moved(
        module_trainer(model=decoder("Gemma3Text", final_logit_softcapping=3.0), peft_config=lora())
    )
    assert trainer.packs
    assert_equal(*both_ways(trainer, block(*BLOCKS["two ragged groups"])))


@pytest.mark.long
def test_dropout_of_the_adapter_leaves_the_mean_where_it_was(module_trainer: MakeTrainer) -> None:
    """Rows of a group share the mask of their prompt, so single draws differ; the expectation is
    TRL's.
    """
    trainer = moved(module_trainer(model=decoder("Llama"), peft_config=lora(lora_dropout=0.1)))
    rows = block(*BLOCKS["two ragged groups"])
    trainer.model.eval()
    assert_equal(*both_ways(trainer, rows))
    trainer.model.train()
    with torch.no_grad():
        ways = [
            type(trainer)._get_per_token_logps_and_entropies,
            trl.GRPOTrainer._get_per_token_logps_and_entropies,
        ]
        samples = [
            torch.stack([way(trainer, trainer.model, *rows)[0] for _ in range(200)]) for way in ways
        ]
    scored = rows[1][:, -rows[2] :].bool()
    assert (samples[0].std(0)[scored] > 0).all()  # dropout is on
    apart = (samples[0].mean(0) - samples[1].mean(0))[scored]
    error = ((samples[0].var(0) + samples[1].var(0)) / 200).sqrt()[scored]
    assert (apart.abs() < 5 * error).all()


def test_half_precision_agrees_within_its_own_rounding(module_trainer: MakeTrainer) -> None:
    """In bfloat16 the two ways may differ by what each differs from float32."""
    rows = block(*BLOCKS["two ragged groups"])
    exact = both_ways(moved(module_trainer(model=decoder("Llama"), peft_config=lora())), rows)[1]
    trainer = moved(module_trainer(model=decoder("Llama").to(torch.bfloat16), peft_config=lora()))
    assert trainer.packs
    ours, theirs = both_ways(trainer, rows)
    error = (theirs[0].float() - exact[0]).abs().mean()
    assert 0 < (ours[0].float() - exact[0]).abs().mean() < 2 * error
    rounding = (theirs[2] - exact[2]).norm()
    assert (ours[2] - exact[2]).norm() < 2 * rounding


def test_four_bits(module_trainer: MakeTrainer, tmp_path: Any) -> None:
    decoder("Llama", hidden_size=64, head_dim=16).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32
        ),
    )
    trainer = moved(
        module_trainer(model=prepare_model_for_kbit_training(model), peft_config=lora())
    )
    assert trainer.packs
    ours, theirs = both_ways(trainer, block(*BLOCKS["two ragged groups"]))
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-4)
    assert theirs[2].dtype == torch.bfloat16  # TRL keeps the adapter of a 4-bit base in it
    assert (ours[2] - theirs[2]).norm() < 2**-7 * theirs[2].norm()


UNABLE = {
    "its attention is 'eager'": lambda: decoder("Gemma2", **WINDOW),
    "auxiliary loss": lambda: decoder(
        "Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    # Its recurrence has functions of its own.
    "1 of its 3 layers attend through AttentionInterface, and 0 of 2 convolutions": lambda: decoder(
        "RecurrentGemma",
        block_types=["recurrent", "recurrent", "attention"],
        lru_width=32,
        attention_window_size=64,
    ),
    "is 'eager'": lambda: decoder("Mamba", state_size=4),
}


@pytest.mark.parametrize("reason", UNABLE)
def test_models_that_cannot_say_why_once_and_take_trls_path(
    module_trainer: MakeTrainer, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"router_aux_loss_coef": 0.1} if reason == "auxiliary loss" else {}
    trainer = module_trainer(model=UNABLE[reason](), **settings, beta=0.0)
    rows = block(*BLOCKS["two ragged groups"])
    with caplog.at_level(logging.WARNING, logger=packing_check.__name__), torch.no_grad():
        ours = [
            trainer._get_per_token_logps_and_entropies(trainer.model, *rows)[0] for _ in range(2)
        ]
        theirs = trl.GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, *rows)[
            0
        ]
    said = [
        record.getMessage() for record in caplog.records if record.name == packing_check.__name__
    ]
    assert len(said) == 1 and reason in said[0], said
    assert torch.equal(ours[0], theirs) and torch.equal(ours[1], theirs)


def test_a_model_whose_numbers_differ_is_found(
    module_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions in the row instead of in the sequence: wrong by much less than a crash, and
    seen.
    """
    trainer = module_trainer(model=decoder("Llama"), peft_config=lora())
    rotary = trainer.model.get_base_model().model.rotary_emb
    in_row = type(rotary).forward
    monkeypatch.setattr(
        rotary,
        "forward",
        lambda x, position_ids: in_row(rotary, x, torch.arange(x.shape[1])[None]),
        raising=False,
    )
    assert not trainer.packs


def test_two_trainers_share_a_model(module_trainer: MakeTrainer) -> None:
    """As a notebook cell that runs twice: the second trainer's temperature counts, and nothing
    is sliced twice.
    """
    model = decoder("Llama")
    rows = block(*BLOCKS["two ragged groups"])
    for temperature in (1.0, 0.5):
        trainer = module_trainer(model=model, temperature=temperature, beta=0.0)
        assert trainer.packs
        assert_equal(*both_ways(trainer, rows))


def test_bfloat16_autocast_agrees_within_its_own_rounding(module_trainer: MakeTrainer) -> None:
    rows = block(*BLOCKS["two ragged groups"])
    exact = both_ways(moved(module_trainer(model=decoder("Llama"), peft_config=lora())), rows)[1]
    trainer = moved(module_trainer(model=decoder("Llama"), peft_config=lora(), bf16=True))
    assert trainer.packs
    with trainer.accelerator.autocast():
        ours, theirs = both_ways(trainer, rows)
    error = (theirs[0] - exact[0]).abs().mean()
    assert 0 < (ours[0] - exact[0]).abs().mean() < 2 * error


def test_off_is_trls_path(module_trainer: MakeTrainer) -> None:
    trainer = module_trainer(model=decoder("Llama"), peft_config=lora(), packed_update=False)
    rows = block(*BLOCKS["two ragged groups"])
    assert not trainer.packs
    with torch.no_grad():
        ours = trainer._get_per_token_logps_and_entropies(trainer.model, *rows)[0]
        theirs = trl.GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, *rows)[
            0
        ]
    assert torch.equal(ours, theirs)
