"""Which way vLLM gets the weights, and what is refused before a model is loaded."""

from typing import Any
from unittest.mock import patch

import pytest
import trl
from peft import AdaLoraConfig, LoHaConfig, LoraConfig

from grpo_hf import GRPOConfig
from grpo_hf.errors import ConfigError
from grpo_hf.rollout import vllm_sync
from grpo_hf.rollout.vllm_sync import choose_sync, served_rank, why_not_adapter

PLAIN = {"r": 4, "target_modules": "all-linear"}
UNSAYABLE = [
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "all"}, "bias='all'"),
    ({"lora_bias": True}, "lora_bias"),
    ({"target_modules": ["q_proj", "lm_head"]}, "heads and embeddings"),
    ({"target_modules": r".*\.(q_proj|embed_tokens)"}, "heads and embeddings"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ({"target_parameters": ["experts.weight"]}, "target_parameters"),
    ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    ({"layer_replication": [(0, 2)]}, "layer_replication"),
    ({"r": 1024}, "rank is 1024"),
    ({"rank_pattern": {"q_proj": 600}}, "rank is 600"),
]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_sync, "_installed", lambda: True)


def arguments(tmp_path: Any, **settings: Any) -> GRPOConfig:
    settings = {"use_vllm": True, "num_generations": 8, **settings}
    return GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(("options", "named"), UNSAYABLE)
def test_what_vllm_s_lora_cannot_say_goes_merged_or_is_refused(
    options: dict[str, Any], named: str, tmp_path: Any
) -> None:
    config = LoraConfig(**PLAIN | options)
    assert choose_sync(arguments(tmp_path), config) == "merged"
    with pytest.raises(ConfigError, match=r"--vllm_sync merged") as caught:
        choose_sync(arguments(tmp_path, vllm_sync="adapter"), config)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "config", [None, LoHaConfig(target_modules=["q_proj"]), AdaLoraConfig(total_step=9)]
)
def test_what_is_no_lora_goes_merged(config: Any, tmp_path: Any) -> None:
    assert why_not_adapter(config) is not None
    assert choose_sync(arguments(tmp_path), config) == "merged"


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True, "lora_dropout": 0.1, "lora_alpha": 7},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 2}},
        {
            "init_lora_weights": "gaussian",
            "target_modules": ["q_proj"],
            "layers_to_transform": [0],
        },
        {"target_modules": ["q_proj", "gate_proj"], "exclude_modules": ["o_proj"]},
    ],
)
def test_a_lora_goes_by_itself(options: dict[str, Any], tmp_path: Any) -> None:
    assert choose_sync(arguments(tmp_path), LoraConfig(**PLAIN | options)) == "adapter"


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (2, 8), (8, 8), (9, 16), (321, 512)])
def test_vllm_has_room_for_the_rank(rank: int, served: int) -> None:
    assert served_rank(LoraConfig(r=rank)) == served
    assert served_rank(LoraConfig(r=1, rank_pattern={"q_proj": rank})) == served


def test_a_quantised_base_is_sampled_by_servers_alone(tmp_path: Any) -> None:
    config = LoraConfig(**PLAIN)
    with pytest.raises(ConfigError, match="--vllm_mode server"):
        choose_sync(arguments(tmp_path), config, quantized=True)
    server = arguments(tmp_path, vllm_mode="server")
    assert choose_sync(server, config, quantized=True) == "adapter"
    with pytest.raises(ConfigError, match="quantised"):
        choose_sync(server, LoraConfig(**PLAIN, use_dora=True), quantized=True)


def test_a_base_without_weights_of_its_own_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="GGUF"):
        choose_sync(arguments(tmp_path), LoraConfig(**PLAIN), from_gguf=True)


def test_only_servers_with_adapters_do_without_vllm_here(tmp_path: Any) -> None:
    config = LoraConfig(**PLAIN)
    with patch.object(vllm_sync, "_installed", lambda: False):
        assert choose_sync(arguments(tmp_path, vllm_mode="server"), config) == "adapter"
        for settings in ({}, {"vllm_mode": "server", "vllm_sync": "merged"}):
            with pytest.raises(ConfigError, match="not installed"):
                choose_sync(arguments(tmp_path, **settings), config)


def test_another_word_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="vllm_sync is 'lora'"):
        arguments(tmp_path, vllm_sync="lora")


def test_settings_of_trl_s_class_are_checked(tmp_path: Any) -> None:
    settings = {"use_cpu": True, "bf16": False, "use_vllm": True, "vllm_mode": "nonsense"}
    args = trl.GRPOConfig(output_dir=str(tmp_path), **settings)
    with pytest.raises(ConfigError, match="vllm_mode is 'nonsense'"):
        choose_sync(args, LoraConfig(**PLAIN))
