"""Every tuner of PEFT and every option of LoRA: what trains with TRL trains here, as it does there.

TRL is asked first, so a list of what it cannot train is not kept here.
"""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import config as lora_options
from support.adapters import logits
from support.models import decoder

import grpo_hf
from grpo_hf import reward_settings
from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.errors import ModelError, ReferenceDriftError
from grpo_hf.models.kept_weights import kept_weights
from grpo_hf.models.reference import as_reference

Q = {"target_modules": ["q_proj"]}
SOME = {"target_modules": ["q_proj", "o_proj", "up_proj"]}
SOFT = {"num_virtual_tokens": 4}
TUNERS: dict[str, dict[str, Any]] = {
    "ADALORA": Q | {"total_step": 10, "tinit": 1, "tfinal": 1},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "BEFT": {},
    "BOFT": Q | {"boft_block_size": 4},
    "C3A": Q | {"block_size": 16},
    "CARTRIDGE": SOFT,
    "CPT": {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MULTITASK_PROMPT_TUNING": SOFT | {"num_tasks": 2},
    "PREFIX_TUNING": SOFT,
    "PROMPT_TUNING": SOFT,
    "P_TUNING": SOFT | {"encoder_hidden_size": 16},
    "SHADOW": {},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4]},
    "VBLORA": Q | {"vector_length": 16, "num_vectors": 8, "topk": 2},
    "XLORA": {"adapters": {}},
}
EMBEDDINGS = {"target_modules": ["q_proj", "embed_tokens"]}
# One entry at least for each option of LoraConfig; see the test below.
OPTIONS: dict[str, dict[str, Any]] = {
    "r": SOME | {"r": 2, "lora_alpha": 3},
    "bias all": SOME | {"bias": "all"},
    "bias lora_only": SOME | {"bias": "lora_only"},
    "use_rslora": SOME | {"use_rslora": True},
    "lora_dropout": SOME | {"lora_dropout": 0.5},
    "use_dora": SOME | {"use_dora": True},
    "lora_bias": SOME | {"lora_bias": True},
    "fan_in_fan_out": SOME | {"fan_in_fan_out": True},
    "norms saved": SOME | {"modules_to_save": ["norm"]},
    "head saved": SOME | {"modules_to_save": ["lm_head"]},
    "embeddings and head saved": SOME | {"modules_to_save": ["embed_tokens", "lm_head"]},
    "ensure_weight_tying": SOME
    | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "embeddings": EMBEDDINGS,
    "embeddings, DoRA": EMBEDDINGS | {"use_dora": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "trainable_token_indices": Q | {"trainable_token_indices": [3, 4]},
    "layers": Q | {"layers_to_transform": [1], "layers_pattern": "layers"},
    "exclude_modules": {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    "patterns": SOME | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 3}},
    "alora_invocation_tokens": SOME | {"alora_invocation_tokens": [5, 6]},
    "layer_replication": SOME | {"layer_replication": [(0, 2), (1, 3)]},
    "target_parameters": {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]},
    "use_qalora": SOME | {"use_qalora": True, "qalora_group_size": 16},
    "arrow_config": Q | {"arrow_config": lora_options.ArrowConfig()},
    "kasa_config": Q | {"kasa_config": lora_options.KasaConfig()},
    "velora_config": Q | {"velora_config": lora_options.VeloraConfig()},
    "monteclora_config": Q | {"monteclora_config": lora_options.MontecloraConfig()},
    "use_bdlora": Q
    | {"use_bdlora": lora_options.BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)},
    "runtime_config": SOME
    | {"runtime_config": lora_options.LoraRuntimeConfig(ephemeral_gpu_offload=True)},
    "megatron": SOME | {"megatron_core": "megatron.core"},
    "eva": Q | {"init_lora_weights": "eva", "eva_config": lora_options.EvaConfig()},
    "gaussian": SOME | {"init_lora_weights": "gaussian"},
    "orthogonal": SOME | {"init_lora_weights": "orthogonal"},
    "mica": Q | {"init_lora_weights": "mica"},
    "no no-op": SOME | {"init_lora_weights": False},
    "pissa": SOME | {"init_lora_weights": "pissa"},
    "olora": SOME | {"init_lora_weights": "olora"},
}
# These need other libraries, or are refused by name (BASE_CHANGING_INITS).
ELSEWHERE = {"megatron_config", "loftq_config", "corda_config", "lora_ga_config"}
# The sentences of the table of differences.
REFUSED = {
    "no no-op": "at step 0",
    "pissa": "changes the base",
    "olora": "changes the base",
    "kasa_config": "changes the base",
}
FEW = ("bias all", "embeddings", "trainable_token_indices", "head saved", "BEFT", "LN_TUNING")


def configurations() -> dict[str, Any]:
    found = {}
    for kind, configuration in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        name = getattr(kind, "value", kind)
        found[name] = (configuration, TUNERS.get(name, Q))
    for name, settings in OPTIONS.items():
        found[name] = (LoraConfig, settings)
    return found


def test_every_option_of_lora_is_tried() -> None:
    tried = {"peft_type", "task_type", "inference_mode", *ELSEWHERE}
    for settings in OPTIONS.values():
        tried |= settings.keys()
    own = set(LoraConfig.__dataclass_fields__) - set(peft.PeftConfig.__dataclass_fields__)
    assert own - tried == set()


@reward_settings(in_process=True)
def lengths(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def trained(library: Any, folder: Path, name: str, *, continued: bool) -> Any:
    """A trainer after two steps, with what its reference has to be."""
    configuration, settings = configurations()[name]
    config = configuration(**({"task_type": "CAUSAL_LM"} | settings))
    model = decoder("Qwen2", vocab_size=len(tiny_tokenizer())).eval()
    torch.manual_seed(0)
    if continued:
        model = get_peft_model(model, config)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data += 0.02 * torch.randn_like(weight)
    expected = logits(model.eval())
    args = library.GRPOConfig(
        output_dir=str(folder / library.__name__),
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=8,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        beta=0.04,
        learning_rate=1e-2,
        disable_tqdm=True,
    )
    trainer = library.GRPOTrainer(
        model,
        lengths,
        args,
        Dataset.from_list([{"prompt": f"{a} + {a + 1} = "} for a in range(8)]),
        processing_class=tiny_tokenizer(),
        peft_config=None if continued else config,
    )
    trainer.train()
    return trainer, expected


def check(folder: Path, caplog: pytest.LogCaptureFixture, name: str, *, continued: bool) -> None:
    try:
        trained(trl, folder, name, continued=continued)
    # What TRL and PEFT raise here is theirs; only what trains is promised.
    except Exception as error:
        # These TRL cannot continue, and ours can.
        if not (continued and str(error).find("supports only 1") >= 0):
            pytest.skip(f"TRL: {type(error).__name__}: {str(error)[:100]}")
    if name in REFUSED and not (continued and name == "no no-op"):
        with pytest.raises((ModelError, ReferenceDriftError), match=REFUSED[name]):
            trained(grpo_hf, folder, name, continued=continued)
        return
    caplog.clear()
    trainer, expected = trained(grpo_hf, folder, name, continued=continued)
    assert trainer.state.global_step == 2
    assert "not checked" not in caplog.text
    kl = trainer.state.log_history[0]["kl"]
    soft = trainer.model.active_peft_config.is_prompt_learning and not continued
    said = soft or "changes the model from the start" in caplog.text or "Dropout" in caplog.text
    assert abs(kl) <= 1e-6 or said
    trainer.model.eval()
    with as_reference(trainer.model):
        torch.testing.assert_close(logits(trainer.model), expected)
    assert kept_weights(trainer.model).start is None or continued


@pytest.mark.long
@pytest.mark.parametrize("continued", [False, True], ids=["new", "continued"])
@pytest.mark.parametrize("name", FEW)
def test_an_adapter_trains_with_its_reference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, continued: bool
) -> None:
    check(tmp_path, caplog, name, continued=continued)


@pytest.mark.slow
@pytest.mark.parametrize("continued", [False, True], ids=["new", "continued"])
@pytest.mark.parametrize("name", sorted(set(configurations()) - set(FEW)))
def test_every_adapter_trains_with_its_reference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, continued: bool
) -> None:
    check(tmp_path, caplog, name, continued=continued)
