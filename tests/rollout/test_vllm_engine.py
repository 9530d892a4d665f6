"""Trainers that sample by vLLM: what is loaded, what stays as it was, and what is said.

tests/support/vllm.py stands for vLLM; tests/real_vllm has the same with the real engine.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.processes import SCRIPTS, launch
from support.vllm import FakeLLM, FakeServer, vllm_installed
from transformers import AutoModelForCausalLM

from grpo_hf import GRPOTrainer, trl_seam
from grpo_hf.errors import ConfigError, EngineError
from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.rollout import vllm_engine
from grpo_hf.rollout.vllm_merged import merged_copies

pytestmark = pytest.mark.long

MakeTrainer = Callable[..., GRPOTrainer]

LORA = {"r": 4, "target_modules": "all-linear"}
RUN = {
    "use_vllm": True,
    "learning_rate": 0.02,
    "optim": "sgd",
    "temperature": 0.9,
    # The engine's stand-in reads every row anew for each token.
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
}
GAP = "sampling/sampling_logp_difference/max"


@pytest.fixture(autouse=True)
def installed() -> Iterator[type[FakeLLM]]:
    with vllm_installed() as made:
        yield made
        vllm_engine.close_engines()


def digest(model: Any) -> str:
    found = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            found.update(weight.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def trained(make_trainer: MakeTrainer, **settings: Any) -> GRPOTrainer:
    """A trainer after its steps, its base as it was before."""
    trainer = make_trainer(**{"peft_config": LoraConfig(**LORA), **RUN, **settings})
    before = digest(trainer.model)
    trainer.train()
    assert digest(trainer.model) == before
    return trainer


def gaps(trainer: GRPOTrainer) -> list[float]:
    return [row[GAP] for row in trainer.state.log_history if GAP in row]


def test_the_engine_samples_from_each_version_of_the_adapter(make_trainer: MakeTrainer) -> None:
    trainer = trained(make_trainer, max_steps=3, learning_rate=1.0)
    (engine,) = FakeLLM.started
    assert engine.settings["enable_lora"] and engine.settings["max_lora_rank"] == 8
    assert engine.settings["dtype"] == "float32"
    # The check's version, then one for each step, all in place of the one before.
    loads = [call for call in engine.calls if call[0] == "load"]
    names = [name.rpartition("-") for _, name, in_place in loads if in_place]
    assert [number for _, _, number in names] == ["1", "2", "3", "4"]
    assert len({run for run, _, _ in names}) == 1
    assert engine.calls.count("reset") == 4
    assert len(gaps(trainer)) == 3 and max(gaps(trainer)) < 1e-5
    assert not list(Path("/tmp").glob(f"grpo-adapter-*/{loads[0][1]}"))


def test_no_files_stay_behind(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trained(make_trainer, vllm_adapter_dir=str(tmp_path / "adapters"))
    assert len(list((tmp_path / "adapters").iterdir())) == 1
    vllm_engine.close_engines()
    assert not (tmp_path / "adapters").exists()
    assert FakeLLM.started[0].calls[-1] == "shutdown"


def test_sleeping_keeps_the_base(make_trainer: MakeTrainer) -> None:
    """At TRL's level 2 vLLM drops its weights, and TRL sends them again."""
    trainer = trained(make_trainer, vllm_enable_sleep_mode=True)
    (engine,) = FakeLLM.started
    levels = {call[1] for call in engine.calls if call[0] == "sleep"}
    assert levels == {1}
    awake = False
    for call in engine.calls:
        if call[0] in ("wake", "sleep"):
            awake = call == ("wake", "weights") or (awake and call[0] == "wake")
        assert awake or (call != "generate" and call[0] != "load")
    assert max(gaps(trainer)) < 1e-5


def test_a_second_trainer_goes_on_with_the_engine(make_trainer: MakeTrainer) -> None:
    first = trained(make_trainer, max_steps=1)
    make_trainer(model=first.model, **RUN)
    assert len(FakeLLM.started) == 1


def test_servers_sample_from_each_version(
    make_trainer: MakeTrainer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with FakeServer(str(tiny_checkpoint)) as one, FakeServer(str(tiny_checkpoint)) as two:
        urls = f"{one.url}, {two.url}"
        trainer = trained(make_trainer, vllm_mode="server", vllm_server_base_url=urls)
        assert max(gaps(trainer)) < 1e-5
        assert len(one.adapters) == 1 and len(two.adapters) == 1
        assert not FakeLLM.started
        vllm_engine.close_engines()
        assert not one.adapters and not two.adapters
    assert not (tmp_path / "run" / "vllm_adapter").exists()


def test_a_server_that_dies_in_the_middle_is_named(
    make_trainer: MakeTrainer, tiny_checkpoint: Path
) -> None:
    with FakeServer(str(tiny_checkpoint)) as server:
        settings = {"vllm_mode": "server", "vllm_server_base_url": server.url}
        trainer = make_trainer(
            peft_config=LoraConfig(**LORA), vllm_server_timeout=0.3, **RUN, **settings
        )
        failing = [(0, "")] * 99

        def dies(path: str) -> None:
            if len(server.requests) > 12:
                server.failures.update({"/health": failing, "/v1/completions": failing})

        server.before = dies
        with pytest.raises(EngineError, match="does not answer") as caught:
            trainer.train()
        assert server.url in str(caught.value)
        assert "--enable-lora --max-lora-rank 8" in str(caught.value)


def test_another_base_is_noticed(
    make_trainer: MakeTrainer, erratic_model: Any, tiny_checkpoint: Path
) -> None:
    """The model was changed after it was loaded; its files have not."""
    trainer = make_trainer(model=erratic_model, peft_config=LoraConfig(**LORA), **RUN)
    with pytest.raises(EngineError, match="another base"):
        trainer.train()


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "lora_only"}])
def test_what_is_no_plain_lora_is_sent_merged_and_said(
    make_trainer: MakeTrainer, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = LoraConfig(**LORA | options)
    trainer = make_trainer(peft_config=config, **RUN)
    assert "vLLM is sent all weights" in caplog.text
    assert "enable_lora" not in FakeLLM.started[0].settings
    with pytest.raises(EngineError, match="does not take the weights"):
        trainer.train()


def test_an_adapter_beside_weights_that_train_is_refused(make_trainer: MakeTrainer) -> None:
    def policy() -> Any:
        base = make_trainer(use_vllm=False).model
        model = get_peft_model(base, LoraConfig(**LORA))
        model.get_base_model().model.norm.weight.requires_grad_(True)
        return model

    with pytest.raises(ConfigError, match="weights of the base train"):
        make_trainer(model=policy(), **RUN, vllm_sync="adapter")
    assert not FakeLLM.started


def test_refused_before_the_engine_starts(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match="--vllm_sync merged"):
        make_trainer(peft_config=LoraConfig(**LORA, use_dora=True), vllm_sync="adapter", **RUN)
    assert not FakeLLM.started


@pytest.mark.parametrize("sync", ["adapter", "merged"])
def test_settings_that_are_not_vllm_s_are_refused_before_it_starts(
    make_trainer: MakeTrainer, sync: str
) -> None:
    settings = RUN | {"generation_kwargs": {"stop_strings": ["."]}, "vllm_sync": sync}
    with pytest.raises(ConfigError, match="such as stop in the place of stop_strings"):
        make_trainer(peft_config=LoraConfig(**LORA), **settings)
    assert not FakeLLM.started


def test_an_engine_that_does_not_start_is_an_error_of_ours(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory for the cache")

    monkeypatch.setattr(FakeLLM, "__init__", fails)
    with pytest.raises(EngineError, match="no memory for the cache"):
        make_trainer(peft_config=LoraConfig(**LORA), **RUN)


@pytest.mark.parametrize("sync", ["adapter", "merged"])
def test_a_prompt_without_room_is_an_error_of_ours(make_trainer: MakeTrainer, sync: str) -> None:
    trainer = make_trainer(peft_config=LoraConfig(**LORA), vllm_sync=sync, **RUN)
    (engine,) = FakeLLM.started
    if sync == "adapter":
        trainer.vllm_generation.sync_weights()
    engine.llm_engine.model_config.max_model_len = 3
    with pytest.raises(EngineError, match="--vllm_max_model_length"):
        trainer.vllm_generation.generate([[4, 5, 6, 7]], None, 1)


def test_a_server_of_trl_s_that_fails_is_named() -> None:
    def fails(*_: Any) -> None:
        raise Exception("Request failed: 500, CUDA error")  # as TRL 1.16 does it

    with pytest.raises(EngineError, match=r"http://a:1 does not sample .*CUDA error"):
        vllm_engine._generate_there(fails, ["http://a:1"], [[4]], None, 1)


def test_monte_carlo_values_are_sampled_by_the_engine(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(peft_config=LoraConfig(**LORA), process_reward="monte_carlo(n=2)", **RUN)
    policy = trl_seam.policy_of(trainer)
    trainer.vllm_generation.sync_weights()
    before = FakeLLM.started[0].calls.count("generate")
    written = policy.sample([[5, 6]] * 2 + [[7]] * 2, 3, 2)
    assert FakeLLM.started[0].calls.count("generate") == before + 1
    assert len(written) == 4 and all(1 <= len(row) <= 3 for row in written)
    assert trainer.vllm_generation.max_completion_length == trainer.max_completion_length


def test_monte_carlo_values_are_sampled_by_servers(
    make_trainer: MakeTrainer, tiny_checkpoint: Path
) -> None:
    with FakeServer(str(tiny_checkpoint)) as server:
        settings = {"vllm_mode": "server", "vllm_server_base_url": server.url}
        trainer = make_trainer(
            peft_config=LoraConfig(**LORA), process_reward="monte_carlo(n=2)", **RUN, **settings
        )
        trainer.vllm_generation.sync_weights()
        written = trl_seam.policy_of(trainer).sample([[5, 6]] * 2 + [[7]] * 2, 3, 2)
        body = server.requests[-1][1]
        assert len(written) == 4
        assert (body["prompt"], body["n"], body["max_tokens"]) == ([[5, 6], [7]], 2, 3)


def test_two_processes_sample_from_one_adapter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with FakeServer(str(tiny_checkpoint)) as server:
        arguments = (tiny_checkpoint, tmp_path / "run", server.url)
        launch(2, *arguments, script=SCRIPTS / "vllm_training.py")
        loads = server.paths().count("/v1/load_lora_adapter")
        # One process loads: whether it can, the check's version, and one for each step.
        assert loads == 4 and not server.adapters
    answers = [json.loads((tmp_path / f"run/continued-{rank}.json").read_text()) for rank in (0, 1)]
    assert answers[0] == answers[1]
    rows = read_metrics(tmp_path / "run")
    assert max(row[GAP] for row in rows) < 1e-5
    assert "monte_carlo/tokens" in rows[0]


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"use_rslora": True}, {"bias": "lora_only"}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_copies_are_what_peft_merges(
    tiny_checkpoint: Path, options: dict[str, Any], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=dtype)
    model = get_peft_model(base, LoraConfig(**LORA, init_lora_weights=False, **options))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with merged_copies(model):
        model.merge_adapter()
        merged = {name: weight.clone() for name, weight in model.named_parameters()}
        model.unmerge_adapter()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name
    # PEFT's own, which moves the base in bfloat16.
    model.merge_adapter()
    expected = dict(model.named_parameters())
    assert list(merged) == list(expected)
    for name, weight in expected.items():
        assert torch.equal(merged[name], weight), name
    changed = [name for name in merged if not torch.equal(merged[name], before[name])]
    assert len(changed) >= 28
