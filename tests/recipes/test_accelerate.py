"""The configurations of recipes/accelerate: accelerate reads them, and recipes start with them."""

import os
import shlex
import socket
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from support import processes
from support.sharding import environment_of
from support.vllm import FakeServer

from grpo_hf import cli
from grpo_hf.config_checks import planned_processes
from grpo_hf.runs.plan import Question, gpus_of
from grpo_hf.runs.recipe import read_recipe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.slurm")])
STRATEGIES = {
    "one_gpu": ("ddp", 1),
    "ddp": ("ddp", 4),
    "fsdp2": ("fsdp", 8),
    "fsdp2_qlora": ("fsdp", 4),
    "zero2": ("zero2", 4),
    "zero3": ("zero3", 8),
    "two_nodes": ("ddp", 16),
    "vllm_colocate": ("ddp", 4),
    "vllm_servers": ("ddp", 2),
}


def command_in(file: Path) -> list[str]:
    """The command in the comment at the head of a file, as words."""
    lines = []
    for line in file.read_text().splitlines():
        if line.startswith("#     "):
            lines.append(line.removeprefix("#").strip())
    words = shlex.split(" ".join(lines).replace("\\", " "))
    return words[words.index("launch") + 1 :]


def launcher_arguments(file: Path) -> Any:
    """The arguments of the command in a file, as `accelerate launch` joins them with the file."""
    # A free port; the default one may be another test's.
    arguments = launch_command_parser().parse_args(["--main_process_port", "0", *command_in(file)])
    arguments.config_file = str(ROOT / arguments.config_file)
    return _validate_launch_command(arguments)[0]


def sharding_environment(name: str) -> dict[str, str]:
    """What the launcher tells its processes of a file with FSDP."""
    arguments = launcher_arguments(FOLDER / f"{name}.yaml")
    assert arguments.use_fsdp
    environment = {}
    for key, value in prepare_multi_gpu_env(arguments).items():
        if key.startswith(("FSDP_", "ACCELERATE_")):
            environment[key] = value
    return environment


def test_every_engine_has_a_configuration() -> None:
    assert {file.stem for file in FILES} == set(STRATEGIES)


@pytest.mark.parametrize("file", FILES + SCRIPTS, ids=lambda file: file.name)
def test_each_says_when_to_use_it(file: Path) -> None:
    assert "When: " in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_it(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    strategy, processes = STRATEGIES[file.stem]
    assert config.num_processes == processes
    assert gpus_of(Question(accelerate=file)) == (processes, strategy)
    assert config.mixed_precision == "bf16"
    # ClusterConfig sets what it does not know, so that a misspelt key would go unseen.
    assert yaml.safe_load(file.read_text()).keys() <= vars(config).keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_in_it_is_accepted(file: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = launcher_arguments(file)
    assert Path(arguments.config_file) == file
    assert arguments.module and arguments.training_script == "grpo_hf.cli"
    command, recipe, *flags = arguments.training_script_args
    assert (command, recipe) == ("train", "recipe.yaml")
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(
        f"model_name_or_path: {tiny_checkpoint}\noutput_dir: {tmp_path}\nuse_cpu: true\n"
        "per_device_train_batch_size: 8\nnum_generations: 8\n"
    )
    with planned_processes(arguments.num_processes):
        read_recipe(["--config", str(recipe_file), *flags])
    assert arguments.num_processes == STRATEGIES[file.stem][1]
    assert bool(arguments.use_deepspeed) == file.stem.startswith("zero")
    assert bool(arguments.use_fsdp) == file.stem.startswith("fsdp")


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_qlora"])
def test_accelerate_shards_as_the_file_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in sharding_environment(name).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward
    assert plugin.cpu_ram_efficient_loading == (name == "fsdp2")


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_are_bash(file: Path) -> None:
    subprocess.run(["bash", "-n", str(file)], check=True)


def test_torchrun_takes_the_command_of_its_script(tmp_path: Path) -> None:
    # In the place of torchrun, a program that shows its arguments.
    (tmp_path / "torchrun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "NODE": "1",
        "ADDRESS": "10.0.0.1",
    }
    done = subprocess.run(
        ["bash", str(FOLDER / "two_nodes_torchrun.sh"), "recipe.yaml", "--seed", "3"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(done.stdout.splitlines())
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.node_rank) == ("2", "8", 1)
    assert parsed.module and parsed.training_script == "grpo_hf.cli"
    assert parsed.training_script_args == ["train", "recipe.yaml", "--seed", "3"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_run_with_it_can_be_planned(
    file: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "recipes" / "gsm8k.yaml"
    settings = ["--model_name_or_path", str(tiny_checkpoint), "--prompt_tokens", "32"]
    cli.main(["plan", str(recipe), "--accelerate", str(file), *settings])
    assert "MEMORY OF ONE GPU" in capsys.readouterr().out


SHARDED = {"fsdp2", "fsdp2_qlora", "zero2", "zero3"}
NO_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
# What the configurations say beside the launcher, on a CPU.
FLAGS = {
    "fsdp2_qlora": "--load_in_4bit true --bnb_4bit_quant_storage float32",
    "zero2": "--use_peft false",
    "zero3": "--use_peft false",
    "vllm_colocate": "--use_vllm true --vllm_mode colocate --vllm_enable_sleep_mode true",
    "vllm_servers": "--use_vllm true --vllm_mode server --vllm_server_base_url",
}


def flags_of_two_steps(model: Path, folder: Path, processes: int) -> list[str]:
    """Flags of a run whose groups would be torn by another number of processes."""
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n' * 8)
    return f"""
        --model_name_or_path {model} --dataset_path {rows} --output_dir {folder}/run
        --dtype float32 --max_steps 2 --max_completion_length 4 --eval_rows 0 --eval_samples 0
        --eval_data rows={rows}
        --per_device_train_batch_size {4 // processes} --num_generations 4
        --gradient_accumulation_steps 1 --report_to none --save_strategy no --logging_steps 1
        --warmup_steps 0
    """.split()


def started_with(name: str, flags: list[str], *launcher: str) -> subprocess.Popen[str]:
    """Start a recipe by `accelerate launch` with a configuration as it is."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(FOLDER / f"{name}.yaml"), "--mixed_precision", "no"]
    program = [str(processes.SCRIPTS / "recipe_on_a_cpu.py")]
    if name not in SHARDED | {"vllm_colocate"}:
        program = ["-m", "grpo_hf.cli", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    if name.startswith("zero"):
        environment |= environment_of(name)
    else:
        flags = [*flags, "--use_cpu", "true"]
    return subprocess.Popen(
        [*command, *launcher, *program, str(ROOT / "recipes" / "gsm8k.yaml"), *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=NO_DEEPSPEED if name.startswith("zero") else ())
        for name in STRATEGIES
    ],
)
def test_a_recipe_starts_with_it(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    number = 1 if name == "one_gpu" else 2
    launcher = ["--num_processes", str(number), "--main_process_port", "0"]
    flags = [*flags_of_two_steps(tiny_checkpoint, tmp_path, number), *FLAGS.get(name, "").split()]
    with FakeServer(str(tiny_checkpoint)) as server, ExitStack() as machines:
        if name == "vllm_servers":
            flags.append(server.url)
        if name == "two_nodes":
            # Two launchers, as on two machines, which find each other by an address.
            launcher[-1] = str(free_port())
            launcher += ["--main_process_ip", "127.0.0.1", "--machine_rank"]
            other = started_with(name, flags, *launcher, "1")
            machines.enter_context(other)
            machines.callback(other.kill)
            launcher.append("0")
        run = machines.enter_context(started_with(name, flags, *launcher))
        machines.callback(run.kill)
        said, errors = run.communicate(timeout=400)
    assert run.returncode == 0, errors[-3000:]
    assert "step 2/2" in said
    weights = "model.safetensors" if name.startswith("zero") else "adapter_config.json"
    assert (tmp_path / "run" / weights).is_file()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
