"""The memory of an update and of a rollout, against the tensors that are alive in one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.live_memory import LiveTensors
from support.models import block, decoder, lora

from grpo_hf.planning.geometry import Geometry
from grpo_hf.planning.memory import scoring_terms, update_terms
from grpo_hf.planning.model_shape import shape_of
from grpo_hf.planning.precision import Precision
from grpo_hf.planning.run_facts import RunFacts

# So many tokens that what grows with them is nearly everything.
PROMPT, COMPLETION, GROUP, ROWS = 64, 96, 4, 16
WIDE = {
    "vocab_size": 480,
    "hidden_size": 48,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "head_dim": 12,
}
EXACT = Precision(4, None, 4, 4, autocast=False)
HALF = Precision(2, None, 2, 4, autocast=False)
AUTOCAST = Precision(4, None, 2, 4, autocast=True)
HALF_AUTOCAST = Precision(2, None, 2, 4, autocast=True)

CASES: dict[str, tuple[str, Precision, dict[str, Any]]] = {
    "float32": ("Llama", EXACT, {}),
    "checkpointing": ("Llama", EXACT, {"checkpointing": True}),
    "dropout": ("Llama", EXACT, {"dropout": 0.1}),
    "TRL's update": ("Llama", EXACT, {"packed": False}),
    "norms of heads": ("Qwen3", EXACT, {}),
    "no adapter": ("Llama", EXACT, {"adapter": False}),
    "experts": ("Mixtral", EXACT, {"packed": False}),
    "experts, checkpointing": ("Mixtral", EXACT, {"packed": False, "checkpointing": True}),
    "bfloat16": ("Llama", HALF, {}),
    "autocast": ("Llama", AUTOCAST, {}),
    "autocast of bfloat16": ("Llama", HALF_AUTOCAST, {}),
    "autocast, checkpointing": ("Llama", HALF_AUTOCAST, {"checkpointing": True}),
}


def facts(model: Any, precision: Precision, options: dict[str, Any]) -> RunFacts:
    adapter = None
    if options.get("adapter", True):
        adapter = lora(lora_dropout=options.get("dropout", 0.0))
    return RunFacts(
        shape=shape_of(model.config, adapter),
        geometry=Geometry(
            gpus=1,
            group=GROUP,
            batch=ROWS,
            parts=1,
            accumulation=1,
            iterations=1,
            prompt=PROMPT,
            completion=COMPLETION,
            packed=options.get("packed", True),
        ),
        precision=precision,
        device="cpu",
        uses_adapter=adapter is not None,
        dropout=options.get("dropout", 0.0),
        checkpointing=options.get("checkpointing", False),
    )


def rows() -> tuple[torch.Tensor, torch.Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, 480, (ROWS // GROUP, PROMPT), generator=generator)
    completions = torch.randint(5, 480, (ROWS, COMPLETION), generator=generator)
    return block(prompts.repeat_interleave(GROUP, dim=0).tolist(), completions.tolist())


def planned_and_trainer(make_trainer: Callable[..., Any], name: str) -> tuple[RunFacts, Any]:
    architecture, precision, options = CASES[name]
    model = decoder(architecture, **WIDE)
    run = facts(model, precision, options)
    adapter = lora(lora_dropout=options.get("dropout", 0.0)) if run.uses_adapter else None
    trainer = make_trainer(
        model=model.to(torch.bfloat16) if precision.weights == 2 else model,
        peft_config=adapter,
        gradient_checkpointing=run.checkpointing,
        packed_update=run.geometry.packed,
        bf16=precision.autocast,
        beta=0.0,
    )
    if run.geometry.packed and not trainer.packs:
        # The test is of the plan: in bf16 these random weights may be too rough to be packed.
        trainer.packs = type("Always", (), {"takes": lambda self, ids: True})()
    if run.checkpointing:
        # `train` does it.
        trainer.model.gradient_checkpointing_enable()
    trainer.model.train()
    return run, trainer


@pytest.mark.parametrize("name", CASES)
def test_the_plan_of_an_update_is_what_its_tensors_take(
    make_trainer: Callable[..., Any], name: str
) -> None:
    run, trainer = planned_and_trainer(make_trainer, name)
    scored = rows()
    with LiveTensors(*trainer.model.parameters(), *trainer.model.buffers()) as alive:
        with trainer.accelerator.autocast():
            log_probs = trainer._get_per_token_logps_and_entropies(
                trainer.model, *scored, compute_entropy=True
            )[0]
        log_probs.sum().backward()
    planned = sum(term.size for term in update_terms(run))
    assert planned == pytest.approx(alive.peak, rel=0.08)


@pytest.mark.parametrize("name", ["float32", "TRL's update", "bfloat16", "autocast of bfloat16"])
def test_the_plan_of_scoring_is_what_its_tensors_take(
    make_trainer: Callable[..., Any], name: str
) -> None:
    run, trainer = planned_and_trainer(make_trainer, name)
    scored = rows()
    known = [*trainer.model.parameters(), *trainer.model.buffers()]
    with torch.no_grad(), trainer.accelerator.autocast(), LiveTensors(*known) as alive:
        trainer._get_per_token_logps_and_entropies(trainer.model, *scored, batch_size=ROWS)
    planned = sum(term.size for term in scoring_terms(run))
    assert planned == pytest.approx(alive.peak, rel=0.1)
