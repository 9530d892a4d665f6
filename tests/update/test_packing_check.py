"""What may be updated on packed rows is measured, with what an adapter and a model look for."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import trl
from peft import LoraConfig
from support.models import WINDOW, block, decoder, lora, moved
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grpo_hf import GRPOTrainer
from grpo_hf.models import measuring
from grpo_hf.update import packing_check
from grpo_hf.update.packing_limits import TOKENWISE_ADAPTERS, longest_packed_row

MakeTrainer = Callable[..., GRPOTrainer]

# The tokens 5, 6 and 21 are looked for by some adapters.
PROMPTS = [[5, 6, 7, 8, 9, 10, 11]] * 3 + [[14, 5, 6]] * 3
COMPLETIONS = [[21, 22, 5, 6, 25, 26], [31], [41, 21], [51, 52, 53], [61, 5, 6, 64, 65], [71, 72]]
ROWS = block(PROMPTS, COMPLETIONS)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what the log says about packing."""
    messages: list[str] = []

    # Some are said by every process, which a keyword asks for.
    def warning(message: str, **_: Any) -> None:
        messages.append(message)

    monkeypatch.setattr(packing_check.logger, "warning", warning)
    return messages


def off_zero(trainer: GRPOTrainer) -> GRPOTrainer:
    """Give weights that train and are 0 another value, so that every part of an adapter counts."""
    torch.manual_seed(1)
    for weight in trainer.model.parameters():
        if weight.requires_grad and not weight.any():
            nn.init.normal_(weight, std=0.2)
    return trainer


def learned(trainer: GRPOTrainer, scorer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies and the gradient of a loss of both, from one way to score."""
    ids, mask, longest = ROWS
    scored = mask[:, -longest:]
    torch.manual_seed(2)
    weights = torch.randn(2, *scored.shape) * scored
    trainer.model.zero_grad()
    values, entropies, _ = scorer(trainer, trainer.model, ids, mask, longest, compute_entropy=True)
    (values * weights[0] + entropies * weights[1]).sum().backward()
    gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return (values * scored).detach(), (entropies * scored).detach(), torch.cat(gradients)


def assert_packed_as_trl(trainer: GRPOTrainer) -> None:
    """Compare what is learned in the mode of training."""
    trainer.model.train()
    # An adapter may draw numbers, or remember its first batch.
    states = copy.deepcopy(trainer.model.state_dict())
    ours = learned(trainer, type(trainer)._get_per_token_logps_and_entropies)
    trainer.model.load_state_dict(states)
    theirs = learned(trainer, trl.GRPOTrainer._get_per_token_logps_and_entropies)
    for got, wanted in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert theirs[2].norm() > 0.1
    assert (ours[2] - theirs[2]).norm() <= 1e-5 * theirs[2].norm()


def assert_falls_back(trainer: GRPOTrainer, said: list[str], reason: str) -> None:
    """Expect TRL's numbers bit for bit, and one line that says why."""
    # Some adapters draw numbers in training.
    trainer.model.eval()
    with torch.no_grad():
        ours = trainer._get_per_token_logps_and_entropies(trainer.model, *ROWS)[0]
        again = trainer._get_per_token_logps_and_entropies(trainer.model, *ROWS)[0]
        theirs = trl.GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, *ROWS)
    assert torch.equal(ours, theirs[0]) and torch.equal(again, theirs[0])
    assert len(said) == 1 and reason in said[0], said


# Every option of LoraConfig in PEFT 0.21: settings that use it, or the reason why it is refused
# before a trainer packs anything.
QV = {"target_modules": ["q_proj", "v_proj"]}
LORA_OPTIONS: dict[str, dict[str, Any] | str] = {
    "r": {"r": 2},
    "target_modules": {"target_modules": ["embed_tokens", "q_proj"]},
    "exclude_modules": {"exclude_modules": ["q_proj"]},
    "lora_alpha": {"lora_alpha": 3},
    # Its mean is TRL's (test_log_probs.py); here it is only that it does not end anything.
    "lora_dropout": {"lora_dropout": 1e-9},
    "fan_in_fan_out": {"fan_in_fan_out": False},
    "bias": {"lora_alpha": 4},
    "use_rslora": {"use_rslora": True},
    "modules_to_save": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "init_lora_weights": {"init_lora_weights": "orthogonal"},
    "layers_to_transform": QV | {"layers_to_transform": [0]},
    "layers_pattern": QV | {"layers_to_transform": [0], "layers_pattern": "layers"},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "megatron_config": "for layers of Megatron",
    "megatron_core": "for layers of Megatron",
    "trainable_token_indices": {"trainable_token_indices": [5, 6, 21]},
    "loftq_config": "changes the base, which models/adapters.py refuses",
    "eva_config": "only says how weights begin",
    "corda_config": "changes the base, which models/adapters.py refuses",
    "lora_ga_config": "changes the base, which models/adapters.py refuses",
    "use_dora": {"use_dora": True},
    "velora_config": {"velora_config": peft.tuners.lora.config.VeloraConfig(num_groups=4)},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5, 6]},
    "use_qalora": {"use_qalora": True, "qalora_group_size": 4},
    "qalora_group_size": {"use_qalora": True, "qalora_group_size": 8},
    "monteclora_config": {"monteclora_config": peft.tuners.lora.config.MontecloraConfig()},
    "layer_replication": {"layer_replication": [(0, 2), (1, 3)]},
    "runtime_config": {"runtime_config": peft.LoraRuntimeConfig()},
    "lora_bias": {"lora_bias": True},
    "target_parameters": QV | {"target_parameters": ["mlp.gate_proj.weight"]},
    "use_bdlora": {
        "use_bdlora": peft.tuners.lora.config.BdLoraConfig(
            target_modules_bd_a=["q_proj", "k_proj", "v_proj"],
            target_modules_bd_b=["o_proj"],
            nblocks=2,
            match_strict=False,
        )
    },
    "arrow_config": "needs adapters of other runs to route between",
    "kasa_config": "changes the base, which models/adapters.py refuses",
    "ensure_weight_tying": {"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]},
}
REFUSED_OPTIONS = {
    "alora_invocation_tokens": "once per row",
    "monteclora_config": "draws weights",
    "velora_config": "average of the first batch",
}


def test_every_option_of_lora_is_known() -> None:
    """A newer PEFT may have more; each has to be tried, or named as one that rows do not see."""
    of_all_adapters = set(peft.PeftConfig.__dataclass_fields__)
    assert set(LoraConfig.__dataclass_fields__) - of_all_adapters == set(LORA_OPTIONS)


@pytest.mark.parametrize(
    "option", [name for name, settings in LORA_OPTIONS.items() if isinstance(settings, dict)]
)
def test_every_option_of_lora_packs_as_trl_or_says_why_not(
    module_trainer: MakeTrainer, option: str, said: list[str]
) -> None:
    settings = LORA_OPTIONS[option]
    model = decoder("Llama", tie_word_embeddings=option == "ensure_weight_tying")
    trainer = off_zero(module_trainer(model=model, peft_config=lora(**settings), beta=0.0))
    assert isinstance(settings, dict)
    if option in REFUSED_OPTIONS:
        assert_falls_back(trainer, said, REFUSED_OPTIONS[option])
    else:
        assert trainer.packs and not said
        assert_packed_as_trl(trainer)


VIRTUAL = {"num_virtual_tokens": 4}
# Every type of PEFT 0.21: settings for its adapter, or why there is none to try.
ADAPTERS: dict[str, dict[str, Any] | str] = {
    "LORA": {},
    "ADALORA": QV | {"r": 4, "total_step": 10},
    "BOFT": QV | {"boft_block_size": 4},
    "C3A": QV | {"block_size": 8},
    "DELORA": QV,
    "FOURIERFT": QV | {"n_frequency": 10},
    "HRA": QV | {"r": 4},
    "IA3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["norm"]},
    "LOHA": QV,
    "LOKR": QV,
    "MISS": QV | {"r": 4},
    "OFT": QV | {"oft_block_size": 4},
    "ROAD": QV | {"group_size": 2},
    "SHIRA": QV | {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [5, 6, 21]},
    "VBLORA": QV | {"vector_length": 8, "num_vectors": 16},
    "VERA": QV,
    "WAVEFT": QV | {"n_frequency": 10},
    "LILY": QV,
    "PVERA": QV,
    "RANDLORA": QV | {"r": 4},
    "PROMPT_TUNING": VIRTUAL,
    "P_TUNING": VIRTUAL,
    "PREFIX_TUNING": VIRTUAL,
    "CARTRIDGE": VIRTUAL,
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_kind_of_adapter_packs_as_trl_or_says_why_not(
    module_trainer: MakeTrainer, kind: str, said: list[str]
) -> None:
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[kind]]
    settings = ADAPTERS[kind]
    assert isinstance(settings, dict)
    adapter = lora() if kind == "LORA" else config(task_type="CAUSAL_LM", **settings)
    trainer = off_zero(module_trainer(model=decoder("Llama"), peft_config=adapter, beta=0.0))
    if kind in TOKENWISE_ADAPTERS:
        assert trainer.packs and not said
        assert_packed_as_trl(trainer)
    else:
        assert_falls_back(trainer, said, f"adapters of type {kind}")


def test_every_kind_that_is_packed_is_tried() -> None:
    assert set(ADAPTERS) >= TOKENWISE_ADAPTERS


class Shifted(nn.Module):
    """A layer whose states also depend on the state before, as a convolution's do."""

    def __init__(self, layer: nn.Module, share: Any) -> None:
        super().__init__()
        self.layer = layer
        self.weight = layer.weight if isinstance(layer, nn.Embedding) else None
        self.share = share

    def forward(self, given: Tensor) -> Tensor:
        states = self.layer(given)
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
        return states + self.share * before


def leaking(share: float) -> Any:
    """A Llama of the size of weights that a new model has, and a little of the token before."""
    model = decoder("Llama", initializer_range=0.02)
    model.model.embed_tokens = Shifted(model.model.embed_tokens, share)
    return model


PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "bfloat16 weights": (torch.bfloat16, False),
    "bfloat16 by autocast": (torch.float32, True),
    "float16 weights": (torch.float16, False),
}


@pytest.mark.parametrize("room", [math.inf, 0], ids=["in float32", "without the memory for that"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_state_that_leaks_a_little_is_found_in_every_precision(
    module_trainer: MakeTrainer,
    precision: str,
    room: float,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "free_memory", lambda device: room)
    dtype, autocast = PRECISIONS[precision]
    model = leaking(0.05).to(dtype)
    trainer = module_trainer(model=model, peft_config=lora(**QV), bf16=autocast, beta=0.0)
    assert not trainer.packs
    assert "changes with its neighbours" in said[0]


def test_the_leak_is_within_what_half_precision_rounds(module_trainer: MakeTrainer) -> None:
    """A tolerance alone would have let it pass: 5e-2 on average, as it was before."""
    trainer = module_trainer(model=leaking(0.05), peft_config=lora(**QV), beta=0.0)
    with torch.no_grad():
        layout = packing_check.PackedGroups.pack(*ROWS)
        packed, _ = packing_check.forward_packed(trainer.model, layout)
        theirs = trl.GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, *ROWS)
    scored = ROWS[1][:, -ROWS[2] :]
    assert 1e-5 < ((packed - theirs[0]) * scored).abs().mean() < 5e-2


@pytest.mark.parametrize("room", [math.inf, 0], ids=["in float32", "without the memory for that"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Qwen3", "Gemma3Text", "GPT2"])
@pytest.mark.parametrize("size", [0.02, 0.2])
def test_good_models_are_packed_in_every_precision(
    module_trainer: MakeTrainer,
    architecture: str,
    size: float,
    precision: str,
    room: float,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "free_memory", lambda device: room)
    dtype, autocast = PRECISIONS[precision]
    model = decoder(architecture, initializer_range=size).to(dtype)
    trainer = module_trainer(model=model, peft_config=lora(), bf16=autocast, beta=0.0)
    assert trainer.packs, said


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ["Qwen3Moe", "Olmoe"])
def test_experts_that_get_other_tokens_are_no_leak(
    module_trainer: MakeTrainer, architecture: str, precision: str, said: list[str]
) -> None:
    dtype, autocast = PRECISIONS[precision]
    model = decoder(architecture, **EXPERTS).to(dtype)
    settings = {"bf16": autocast, "router_aux_loss_coef": 0.0, "beta": 0.0}
    assert module_trainer(model=model, **settings).packs, said


def test_a_leak_behind_a_weight_that_is_still_zero_is_found(
    module_trainer: MakeTrainer, said: list[str]
) -> None:
    model = decoder("Llama")
    # A gate that opens in training.
    gate = nn.Parameter(torch.zeros(1))
    model.model.layers[1].mlp = Shifted(model.model.layers[1].mlp, gate)
    assert not module_trainer(model=model, beta=0.0).packs
    assert "changes with its neighbours" in said[0]


def test_the_check_leaves_no_trace(module_trainer: MakeTrainer) -> None:
    model = decoder("Llama").to(torch.bfloat16)
    trainer = module_trainer(model=model, peft_config=lora(lora_dropout=0.1), beta=0.0)
    trainer.model.train()
    trainer.model.get_base_model().model.norm.eval()
    before = copy.deepcopy(trainer.model.state_dict())
    modes = [module.training for module in trainer.model.modules()]
    forward = trainer.model.get_base_model().forward
    state = torch.get_rng_state()
    assert trainer.packs
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert [weight.dtype for weight in after.values()] == [w.dtype for w in before.values()]
    assert [module.training for module in trainer.model.modules()] == modes
    assert trainer.model.get_base_model().forward == forward
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in trainer.model.parameters())


PHI_MOE = {
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "router_aux_loss_coef": 0.0,
    "router_jitter_noise": 0.0,
    "input_jitter_noise": 0.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
# Models that see less, or count positions otherwise, from a length on that is below 13, the width
# of the rows above, and above the length of rows that are measured.
UP_TO_A_LENGTH: dict[str, Callable[[], Any]] = {
    "a window in the masks": lambda: decoder("Phimoe", **PHI_MOE, sliding_window=12),
    "positions with two factors": lambda: decoder(
        "Phi3", rope_parameters=LONGROPE, original_max_position_embeddings=12
    ),
    "positions that stretch": lambda: decoder(
        "Llama", rope_parameters=DYNAMIC, max_position_embeddings=12
    ),
}


@pytest.mark.parametrize("kind", UP_TO_A_LENGTH)
def test_rows_beyond_what_was_measured_take_trls_way(
    module_trainer: MakeTrainer, kind: str, said: list[str]
) -> None:
    trainer = module_trainer(model=UP_TO_A_LENGTH[kind](), beta=0.0, router_aux_loss_coef=0.0)
    assert trainer.packs.longest == 11
    theirs = trl.GRPOTrainer._get_per_token_logps_and_entropies
    ids, mask, longest = block([[5, 6, 7, 8]] * 2, [[21, 22, 23], [31, 32, 33]])
    with torch.no_grad():
        short = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, longest)[0]
        expected = theirs(trainer, trainer.model, ids, mask, longest)[0]
    torch.testing.assert_close(short, expected, rtol=0, atol=1e-4)
    assert trainer.packs.takes(ids) and not said
    assert_falls_back(trainer, said, "more than 11 tokens")


SHORTER: dict[str, Callable[[], Any]] = {
    "a window in the masks": lambda: decoder("Phimoe", **PHI_MOE, sliding_window=5),
    "positions that stretch": lambda: decoder(
        "Llama", rope_parameters=DYNAMIC, max_position_embeddings=5
    ),
}


@pytest.mark.parametrize("kind", SHORTER)
def test_a_length_that_is_measured_is_refused_by_the_measurement(
    module_trainer: MakeTrainer, kind: str, said: list[str]
) -> None:
    trainer = module_trainer(model=SHORTER[kind](), beta=0.0, router_aux_loss_coef=0.0)
    assert not trainer.packs and len(said) == 1


@pytest.mark.parametrize("keep", [4, 2048])
def test_masks_of_a_models_own_are_refused(
    module_trainer: MakeTrainer, keep: int, said: list[str]
) -> None:
    """Doge weighs keys by their values, and keeps the best of them."""
    model = decoder("Doge", keep_window_size=keep)
    trainer = module_trainer(model=model, beta=0.0, router_aux_loss_coef=0.0)
    assert_falls_back(trainer, said, "masks of its own")


def test_lengths_that_are_none_set_no_limit() -> None:
    for architecture in ("Llama", "Qwen2", "Qwen3", "Phi3", "SmolLM3", "GPT2", "Qwen3Moe"):
        config = decoder(architecture).config
        assert longest_packed_row(config, set(), 7) == math.inf, architecture
    windowed = decoder("Mistral", sliding_window=32).config
    assert longest_packed_row(windowed, {32}, 7) == math.inf
    assert longest_packed_row(windowed, set(), 7) == 31
    # Its layers tell their attention of no window, and its masks have one all the same.
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    masked = decoder("SmolLM3", sliding_window=9, use_sliding_window=False, layer_types=kinds)
    assert longest_packed_row(masked.config, set(), 7) == 8


def test_windows_that_attention_is_told_of_stay_packed(module_trainer: MakeTrainer) -> None:
    for window in (4, 12):
        model = decoder("Mistral", **WINDOW | {"sliding_window": window})
        trainer = off_zero(module_trainer(model=model, peft_config=lora(), beta=0.0))
        assert trainer.packs.longest == math.inf
        assert_packed_as_trl(trainer)


def test_noise_on_embeddings_is_refused(module_trainer: MakeTrainer, said: list[str]) -> None:
    settings = {"neftune_noise_alpha": 5.0, "beta": 0.0}
    trainer = module_trainer(model=decoder("Llama"), peft_config=lora(), **settings)
    assert_falls_back(trainer, said, "NEFTune")


def last_token_only(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    """Steer the last position of each row, as hooks for steering vectors do."""
    output = output.clone()
    output[:, -1] += 1
    return output


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_of_the_users_are_refused(
    module_trainer: MakeTrainer, kind: str, said: list[str]
) -> None:
    trainer = module_trainer(model=decoder("Llama"), peft_config=lora(), beta=0.0)
    mlp = trainer.model.get_base_model().model.layers[1].mlp
    register = {
        "forward": mlp.register_forward_hook,
        "forward_pre": mlp.register_forward_pre_hook,
        "full_backward": mlp.register_full_backward_hook,
    }[kind]
    register(last_token_only if kind == "forward" else lambda *given: None)
    assert_falls_back(trainer, said, "a hook on")


def test_a_hook_that_comes_later_ends_packing_there(
    module_trainer: MakeTrainer, said: list[str]
) -> None:
    trainer = module_trainer(model=decoder("Llama"), peft_config=lora(), beta=0.0)
    assert trainer.packs.takes(ROWS[0]) and not said
    mlp = trainer.model.get_base_model().model.layers[1].mlp
    handle = mlp.register_forward_hook(last_token_only)
    assert_falls_back(trainer, said, "a hook on")
    handle.remove()
    assert trainer.packs.takes(ROWS[0])


def test_gradient_checkpointing_brings_no_hook_of_the_users(module_trainer: MakeTrainer) -> None:
    settings = {"gradient_checkpointing": True, "beta": 0.0}
    assert module_trainer(model=decoder("Llama"), peft_config=lora(), **settings).packs


class CenteredInTraining(nn.Module):
    """A layer of somebody's that reads rows, and does so in training alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: Tensor) -> Tensor:
        return self.layer(states - states.mean(1, keepdim=True) if self.training else states)


def test_modules_of_the_users_are_refused(module_trainer: MakeTrainer, said: list[str]) -> None:
    model = decoder("Llama")
    model.model.layers[1].mlp = CenteredInTraining(model.model.layers[1].mlp)
    trainer = module_trainer(model=model, peft_config=lora(), beta=0.0)
    assert_falls_back(trainer, said, "code that is no known library's")


def test_forwards_that_were_replaced_are_refused(
    module_trainer: MakeTrainer, said: list[str]
) -> None:
    model = decoder("Llama")
    mlp = model.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda states: forward(states) * (2 if mlp.training else 1)
    trainer = module_trainer(model=model, peft_config=lora(), beta=0.0, bf16=True)
    assert_falls_back(trainer, said, "model.layers.1.mlp computes with code")


class Particular(nn.Module):
    """A layer of somebody's, which insists on the shape of TRL's batches."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: Tensor) -> Tensor:
        assert len(states) > 1, "several rows, please"
        return self.layer(states)


def test_whatever_a_model_raises_ends_no_run(module_trainer: MakeTrainer, said: list[str]) -> None:
    model = decoder("Llama")
    model.model.layers[1].mlp = Particular(model.model.layers[1].mlp)
    trainer = module_trainer(model=model, beta=0.0)
    assert_falls_back(trainer, said, "several rows, please")


def test_an_error_of_this_library_is_not_laid_on_the_model(
    module_trainer: MakeTrainer, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a name of another library moved: here, one of ours."""
    monkeypatch.delattr(packing_check.PackedGroups, "groups")
    trainer = module_trainer(model=decoder("Llama"), peft_config=lora(), beta=0.0)
    assert_falls_back(trainer, said, "no matter of the model: an error in packed_attention.py")


PADDED: dict[str, Callable[[], Any]] = {
    "learned positions": lambda: decoder("GPT2"),
    "a convolution with a bias": lambda: decoder(
        "Lfm2", layer_types=["conv", "full_attention", "conv"], conv_bias=True
    ),
}


@pytest.mark.parametrize("kind", PADDED)
def test_where_padding_changes_trls_numbers_it_is_said(
    module_trainer: MakeTrainer, kind: str, said: list[str]
) -> None:
    model = PADDED[kind]()
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(weight, std=0.3)
    trainer = module_trainer(model=model, beta=0.0)
    assert trainer.packs
    assert len(said) == 1 and "change with the padding" in said[0]


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3Text", "OPT"])
def test_where_padding_changes_nothing_nothing_is_said(
    module_trainer: MakeTrainer, architecture: str, said: list[str]
) -> None:
    assert module_trainer(model=decoder(architecture), beta=0.0).packs and not said


def test_another_name_of_the_adapter_is_as_good(module_trainer: MakeTrainer) -> None:
    model = peft.get_peft_model(decoder("Llama"), lora(), adapter_name="policy")
    trainer = off_zero(module_trainer(model=model, beta=0.0))
    assert trainer.packs
    assert_packed_as_trl(trainer)


def test_attention_of_the_users_choice_is_used_or_said(
    module_trainer: MakeTrainer, said: list[str]
) -> None:
    """Packed updates have kernels of their own, whatever was chosen for the model."""
    AttentionInterface.register("of_the_user", sdpa_attention_forward)
    AttentionMaskInterface.register("of_the_user", sdpa_mask)
    model = decoder("Llama")
    model.set_attn_implementation("of_the_user")
    trainer = moved(module_trainer(model=model, peft_config=lora()))
    assert_packed_as_trl(trainer)
    assert [message for message in said if "'of_the_user' serves rollouts" in message] == said
    assert len(said) == 1
    said.clear()
    trainer = module_trainer(model=decoder("Llama"), peft_config=lora())
    assert trainer.packs and not said


@pytest.mark.long
def test_packed_updates_of_a_compiled_model_are_trls(
    module_trainer: MakeTrainer, said: list[str], tmp_path: Path
) -> None:
    """`torch_compile=True`: each packed row has other lengths, so it is not compiled."""
    torch._dynamo.reset()
    runs = {}
    for compiled in (True, False):
        torch.manual_seed(0)
        trainer = module_trainer(
            peft_config=lora(),
            torch_compile=compiled,
            torch_compile_backend="eager" if compiled else None,
            output_dir=str(tmp_path / f"{compiled}"),
            optim="sgd",
        )
        trainer.train()
        assert trainer.packs
        losses = [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry]
        runs[compiled] = losses
    assert runs[True] == pytest.approx(runs[False], rel=1e-5)
    assert [message for message in said if "without torch.compile" in message] == said
    assert len(said) == 1
