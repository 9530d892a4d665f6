"""The configurations of recipes/accelerate: accelerate reads them, and recipes start with them."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from support import processes

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
    assert "MEMORY OF ONE DEVICE" in capsys.readouterr().out


def flags_of_two_steps(model: Path, folder: Path) -> list[str]:
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n' * 8)
    return f"""
        --model_name_or_path {model} --dataset_path {rows} --output_dir {folder}/run
        --dtype float32 --use_cpu true --max_steps 2 --max_completion_length 4 --eval_rows 0
        --per_device_train_batch_size 4 --num_generations 4 --gradient_accumulation_steps 1
        --report_to none --save_strategy no --logging_steps 1 --warmup_steps 0
    """.split()


@pytest.mark.slow
def test_a_recipe_starts_with_sharded_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    environment = sharding_environment("fsdp2") | {"ACCELERATE_USE_CPU": "true"}
    recipe = ROOT / "recipes" / "gsm8k.yaml"
    flags = flags_of_two_steps(tiny_checkpoint, tmp_path)
    said = processes.launch(
        2, json.dumps(environment), recipe, *flags, script=processes.SCRIPTS / "sharded_recipe.py"
    )
    assert "step 2/2" in said
    assert (tmp_path / "run" / "adapter_config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("one_gpu", 1), ("ddp", 2)])
def test_a_recipe_starts_with_it(
    name: str, processes: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    # The file as it is, but for the device and the number of processes of this machine.
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    settings |= {"use_cpu": True, "num_processes": processes, "mixed_precision": "no"}
    if processes > 1:
        settings["distributed_type"] = "MULTI_CPU"
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    command += ["-m", "grpo_hf.cli", "train", str(ROOT / "recipes" / "gsm8k.yaml")]
    flags = flags_of_two_steps(tiny_checkpoint, tmp_path)
    done = subprocess.run(
        [*command, *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2/2" in done.stdout
    assert (tmp_path / "run" / "adapter_config.json").is_file()
