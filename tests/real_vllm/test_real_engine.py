"""vLLM itself: what it samples by adapter, in this process and as a server, is the policy's."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from grpo_hf import GRPOTrainer
from grpo_hf.errors import EngineError
from grpo_hf.rollout import vllm_engine
from grpo_hf.rollout.vllm_adapter import AdapterFolder
from grpo_hf.rollout.vllm_process import ProcessEngine, start_engine
from grpo_hf.run_files import read_lines

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

MakeTrainer = Callable[..., GRPOTrainer]

ROOT = Path(__file__).parents[2]
LORA = {"r": 4, "target_modules": "all-linear"}
RUN = {
    "use_vllm": True,
    "vllm_max_model_length": 192,
    "learning_rate": 1e-2,
    "max_completion_length": 12,
    "logging_steps": 1,
}
PROMPTS = [[5, 6, 7, 8], [9, 10], list(range(20, 60))]
# Nats, in float32.
CLOSE = 1e-3


@pytest.fixture(scope="module", autouse=True)
def engines_end() -> Iterator[None]:
    yield
    vllm_engine.close_engines()


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> ProcessEngine:
    """An engine as a trainer starts it."""
    return ProcessEngine(
        start_engine(
            {"enforce_eager": True, "dtype": "float32"},
            model=str(tiny_checkpoint),
            enable_lora=True,
            max_lora_rank=8,
            max_model_len=192,
            logprobs_mode="processed_logprobs",
        )
    )


@pytest.fixture
def policy(tiny_checkpoint: Path) -> Any:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    return get_peft_model(base, LoraConfig(**LORA, init_lora_weights=False)).eval()


def greedy_by(engine: ProcessEngine) -> list[list[int]]:
    from vllm import SamplingParams

    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in PROMPTS],
        sampling_params=SamplingParams(temperature=0.0, max_tokens=12),
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def greedy_of(model: Any) -> list[list[int]]:
    rows = []
    for prompt in PROMPTS:
        written = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        rows.append(written[0, len(prompt) :].tolist())
    return rows


def move(policy: Any) -> None:
    """Stand for a large update."""
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.data += 0.3 * torch.randn_like(weight)


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [([5] * 500, {}), ([5], {"structured_outputs": "("})],
    ids=["a prompt", "a pattern"],
)
def test_what_the_engine_refuses_is_an_error_of_ours(
    engine: ProcessEngine, prompt: list[int], settings: dict[str, Any]
) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    if "structured_outputs" in settings:
        settings = {"structured_outputs": StructuredOutputsParams(regex="(")}
    with pytest.raises(EngineError, match="--vllm_max_model_length"):
        engine.generate(
            [{"prompt_token_ids": prompt}],
            sampling_params=SamplingParams(max_tokens=2, **settings),
            use_tqdm=False,
        )
    # It goes on.
    assert len(greedy_by(engine)) == len(PROMPTS)


def test_greedy_tokens_are_those_of_transformers(
    engine: ProcessEngine, policy: Any, tmp_path: Path
) -> None:
    with policy.disable_adapter():
        of_base = greedy_of(policy)
    assert greedy_by(engine) == of_base
    versions = AdapterFolder(tmp_path, "run")
    seen = [of_base]
    for _ in range(3):
        engine.load(*versions.write(policy, writes=True))
        seen.append(greedy_of(policy))
        assert greedy_by(engine) == seen[-1]
        move(policy)
    # Each version says something else, or nothing was shown.
    assert all(one != other for one, other in pairwise(seen))


def digest(model: Any) -> str:
    found = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            found.update(weight.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def trained(make_trainer: MakeTrainer, close: float = CLOSE, **settings: Any) -> GRPOTrainer:
    """A trainer after its steps: what vLLM sampled was the policy's, and the base has stayed."""
    trainer = make_trainer(**{"peft_config": LoraConfig(**LORA), **RUN, **settings})
    before = digest(trainer.model)
    trainer.train()
    assert digest(trainer.model) == before
    name = "sampling/sampling_logp_difference/max"
    gaps = [row[name] for row in trainer.state.log_history if name in row]
    assert len(gaps) == trainer.args.max_steps
    assert max(gaps) < close
    return trainer


def of_smollm2(folder: Path) -> dict[str, Any]:
    return {
        "model": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        "processing_class": AutoTokenizer.from_pretrained(folder, padding_side="left"),
        "max_steps": 2,
        # A row takes seconds in this model.
        "per_device_train_batch_size": 4,
        "max_completion_length": 8,
    }


def test_ten_steps_beside_the_engine(make_trainer: MakeTrainer) -> None:
    trained(make_trainer, max_steps=10)


def test_two_steps_of_smollm2_beside_the_engine(make_trainer: MakeTrainer, smollm2: Path) -> None:
    trained(make_trainer, **of_smollm2(smollm2))


def at(server: Any) -> dict[str, Any]:
    return {"vllm_mode": "server", "vllm_server_base_url": server.url}


def test_ten_steps_at_a_server(make_trainer: MakeTrainer, servers: dict[str, Any]) -> None:
    trained(make_trainer, max_steps=10, **at(servers["tiny"]))


def test_two_steps_of_smollm2_at_a_server(
    make_trainer: MakeTrainer, smollm2: Path, servers: dict[str, Any]
) -> None:
    trained(make_trainer, **of_smollm2(smollm2), **at(servers["smollm2"]))


def test_what_goes_with_it(make_trainer: MakeTrainer) -> None:
    """Dynamic sampling, Monte-Carlo values and evaluations sample by the engine as well."""
    rows = Dataset.from_list([{"prompt": f"{number} + 1 = "} for number in range(8)])
    trainer = trained(
        make_trainer,
        max_steps=2,
        dynamic_sampling=True,
        process_reward="monte_carlo(n=2, steps='1')",
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=rows,
        per_device_eval_batch_size=8,
    )
    names = {name for row in trainer.state.log_history for name in row}
    assert {"monte_carlo/tokens", "eval_reward"} <= names


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
def test_merged_weights_leave_the_base_alone(
    make_trainer: MakeTrainer, options: dict[str, Any]
) -> None:
    """vLLM for CPUs packs its weights once; as on a GPU they stay as they are here."""

    def stays(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    from vllm.model_executor.layers import utils

    with patch.object(utils, "dispatch_cpu_unquantized_gemm", stays):
        # As TRL starts it, vLLM computes in bfloat16; an update that did not arrive is 0.1 away.
        config = LoraConfig(**LORA, **options)
        trained(make_trainer, 0.02, max_steps=3, peft_config=config, vllm_sync="merged")


def test_a_cpu_takes_no_merged_weights(make_trainer: MakeTrainer) -> None:
    settings = RUN | {"vllm_max_model_length": 160}
    trainer = make_trainer(peft_config=LoraConfig(**LORA), **settings, vllm_sync="merged")
    with pytest.raises(EngineError, match="--vllm_sync adapter"):
        trainer.train()


def command(*arguments: str) -> str:
    """Run a command of ours as a user does, and return what it prints."""
    # Where an engine ran in this process, TRL has left the variables of a launcher.
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_run_ends_with_its_comparison_and_is_evaluated_by_the_engine(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--output_dir", str(run), "--max_steps", "3", "--cold_start_steps", "100"]
    # A rate at which the adapter says something else after three steps.
    flags += ["--learning_rate", "5e-3", "--num_iterations", "1"]
    flags += ["--use_vllm", "true", "--eval_rows", "8", "--vllm_max_model_length", "200"]
    said = command("recipes/gsm8k.py", "--config", "recipes/gsm8k_tiny.yaml", *flags)
    for name in ("adapter_model.safetensors", "evaluation.jsonl", "README.md"):
        assert (run / name).is_file(), name
    assert "base" in said
    # The comparison of a run is written by transformers, and this one by the engine: with the
    # adapter and without it, in one model each.
    by_transformers = read_lines(run / "evaluation.jsonl")
    said = command("-m", "grpo_hf.cli", "eval", str(run), "--samples", "2", "--use_vllm", "true")
    assert "transformers writes" not in said, said
    by_engine = read_lines(run / "evaluations" / "held_out.jsonl")
    assert len(by_engine) == 8
    differ = 0
    for one, other in zip(by_transformers, by_engine, strict=True):
        assert one["prompt"] == other["prompt"]
        for side in ("base", "adapter"):
            assert one[side]["answer"] == other[side]["greedy"]
            assert len(other[side]["samples"]) == 2
        differ += one["base"]["answer"] != one["adapter"]["answer"]
    assert differ


class AfterStep(TrainerCallback):
    """Does something once a step has ended."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step = step
        self.action = action

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.action()


def test_a_server_that_is_killed_is_named(
    make_trainer: MakeTrainer, servers: dict[str, Any]
) -> None:
    server = servers["tiny"]
    trainer = make_trainer(
        peft_config=LoraConfig(**LORA),
        **RUN,
        **at(server),
        max_steps=9,
        vllm_server_timeout=3,
        callbacks=[AfterStep(2, server.kill)],
    )
    with pytest.raises(EngineError, match="does not answer") as caught:
        trainer.train()
    assert server.url in str(caught.value) and "vllm serve" in str(caught.value)
    assert trainer.state.global_step == 2
