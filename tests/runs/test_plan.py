"""`grpo-hf plan`, and the warning before a training."""

import json
import random
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoTokenizer

from grpo_hf import cli
from grpo_hf.errors import ConfigError, ModelError
from grpo_hf.planning.fitting import Fit
from grpo_hf.runs import plan, preflight, prompt_lengths
from grpo_hf.runs.recipe import Recipe, read_recipe

FITS = Fit(2**40, 0, "update", True, None)
RECIPES = Path(__file__).parents[2] / "recipes"


def recipe_of(model: Path | str, folder: Path, *more: str) -> Recipe:
    data = folder / "rows.jsonl"
    rows = [{"prompt": f"{a} + 1 =", "answer": str(a + 1)} for a in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model_name_or_path", str(model), "--dataset_path", str(data), "--rewards", "gsm8k"]
    flags += ["--output_dir", str(folder / "run"), "--use_cpu", "--eval_rows", "0"]
    flags += ["--max_steps", "5", "--max_completion_length", "16", "--lora_target_modules"]
    return read_recipe([*flags, "all-linear", *more])


def plan_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    cli.main(["plan", *map(str, arguments)])
    return capsys.readouterr().out


def warn(recipe: Recipe) -> None:
    config = AutoConfig.from_pretrained(recipe.model.model_name_or_path)
    plan.warn_if_too_large(recipe, config, 12)


def test_the_plan_of_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan_of(
        capsys,
        RECIPES / "gsm8k_tiny.yaml",
        *["--prompt_tokens", 50, "--tokens_per_second", 1000, "--dollars_per_hour", 2],
    )
    assert "904,704 parameters in 4 layers" in text
    assert "16 prompts x 8 completions = 128 rows" in text
    assert "the phase update" in text
    assert "8 to 141 GB  fits" in text
    # 30 steps of 128 rows that are used twice, each of 50 + 48 tokens.
    assert "30 steps write at most 92,160 tokens" in text
    assert "a step takes at most 6.3 s, all steps 3:08 min" in text
    assert "the run $0.10" in text


def with_prompts(model: Path, folder: Path, *lengths: int) -> Path:
    """Write a recipe whose prompts are so many words long."""
    rows = [{"prompt": "word " * length, "answer": "1"} for length in lengths]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "mine.yaml"
    settings = {"model_name_or_path": str(model), "dataset_path": str(folder / "rows.jsonl")}
    settings |= {"rewards": ["gsm8k"], "max_steps": 40, "max_completion_length": 16}
    settings |= {"lora_target_modules": "all-linear", "output_dir": str(folder / "run")}
    file.write_text(json.dumps(settings))
    return file


class TestPromptLengths:
    def test_are_those_of_the_data(
        self, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = with_prompts(tiny_checkpoint, tmp_path, *[10] * 30, 50)
        tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
        counts = []
        for length in [10] * 30 + [50]:
            text = "word " * length
            if tokenizer.chat_template is not None:
                messages = [{"role": "user", "content": text}]
                ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
                counts.append(len(ids["input_ids"]))
            else:
                counts.append(len(tokenizer(text)["input_ids"]))
        mean = round(sum(counts) / 31)
        text = plan_of(capsys, recipe)
        assert (
            f"prompts have {mean} tokens on average and {max(counts)} at most, in the 31 rows of"
            in text
        )
        # Memory has to hold the longest, and time is that of the mean: 4 prompts with 8 answers.
        assert f"1 x {max(counts) - 1} prompt tokens once" in text
        assert f"counts {32 * (mean + 16):,} with their prompts" in text

    def test_are_those_of_a_sample_from_all_over_a_long_file(
        self, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        """Files are sorted now and then, and the end of one holds its longest prompts."""
        recipe = read_recipe(
            ["--config", str(with_prompts(tiny_checkpoint, tmp_path, 0, *[10] * 300, *[90] * 9))]
        )
        lengths = prompt_lengths.prompt_lengths(recipe, None)
        shortest = prompt_lengths.prompt_lengths(
            read_recipe(["--config", str(with_prompts(tiny_checkpoint, tmp_path, 10))]), None
        )
        assert lengths.longest > 80 + shortest.longest - 10
        assert f"in a sample of 255 of the 310 rows of {tmp_path}" in lengths.source
        few = with_prompts(tiny_checkpoint, tmp_path, 0, 10, 10)
        lengths = prompt_lengths.prompt_lengths(read_recipe(["--config", str(few)]), None)
        assert f"in 2 of the 3 rows of {tmp_path}" in lengths.source

    def test_are_those_of_the_rows_that_the_run_uses(
        self, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        """A row without what a reward reads is left out, and its prompt is none of the run's."""
        file = with_prompts(tiny_checkpoint, tmp_path, 10, 10)
        usual = prompt_lengths.prompt_lengths(read_recipe(["--config", str(file)]), None)
        with (tmp_path / "rows.jsonl").open("a") as data:
            data.write(json.dumps({"prompt": "word " * 90, "answer": ""}) + "\n")
            data.write(json.dumps({"prompt": "", "answer": "1"}) + "\n")
        (tmp_path / "mine.py").write_text(
            "from grpo_hf import reward_settings\n"
            "@reward_settings(gold='answer')\n"
            "def right(completions, answer): return [1.0] * len(completions)"
        )
        settings = json.loads(file.read_text())
        for spec in ("gsm8k", "./mine.py:right"):
            file.write_text(json.dumps(settings | {"rewards": [spec]}))
            lengths = prompt_lengths.prompt_lengths(read_recipe(["--config", str(file)]), None)
            assert f"in 2 of the 4 rows of {tmp_path}" in lengths.source
            assert lengths.longest == usual.longest

    @pytest.mark.parametrize("spec", ["./nothing.py:right", "./mine.py:other"])
    def test_need_no_reward(self, spec: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
        """The run says what is wrong with a reward, such as a column that is not there."""
        (tmp_path / "mine.py").write_text("def other(completions, other): ...")
        file = with_prompts(tiny_checkpoint, tmp_path, 10, 10)
        file.write_text(json.dumps(json.loads(file.read_text()) | {"rewards": [spec]}))
        lengths = prompt_lengths.prompt_lengths(read_recipe(["--config", str(file)]), None)
        assert f"in the 2 rows of {tmp_path}" in lengths.source

    def test_are_guessed_without_a_tokenizer(
        self, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = with_prompts(tiny_checkpoint, tmp_path, 40)
        recipe = read_recipe(["--config", str(file), "--use_cpu"])
        recipe.model.model_name_or_path = "somebody/model"
        lengths = prompt_lengths.prompt_lengths(recipe, None)
        assert (lengths.longest, lengths.mean) == (50, 50)
        assert "the tokenizer is not here" in lengths.source

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"dataset_path": "nothing.jsonl"}, "nothing.jsonl is not here"),
            ({"dataset_path": None, "dataset_name": "openai/gsm8k"}, "not a local file"),
            ({"prompt_column": "anser"}, "no such column"),
        ],
    )
    def test_are_usual_ones_where_there_is_no_data(
        self, settings: dict[str, Any], said: str, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        recipe = read_recipe(
            ["--config", str(with_prompts(tiny_checkpoint, tmp_path, 40)), "--use_cpu"]
        )
        for name, value in settings.items():
            setattr(recipe.task, name, value)
        lengths = prompt_lengths.prompt_lengths(recipe, None)
        assert lengths.mean == 256 and said in lengths.source
        assert prompt_lengths.prompt_lengths(recipe, 7).longest == 7


@pytest.mark.parametrize(
    ("flags", "mean", "why"),
    [
        ([], 2.5, "2.5 tokens on average, as in {}"),
        (["--max_completion_length", 2], 2, "the most they may have; those of {} had 2.5"),
        (["--completion_tokens", 8], 8, "taken to have 8 tokens"),
    ],
)
def test_completions_are_as_long_as_those_of_a_like_run(
    flags: list[object],
    mean: float,
    why: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = with_prompts(tiny_checkpoint, tmp_path, 10)
    # 4 prompts with 8 answers of 2.5 tokens, and prompts of 20.
    row = {"step": 5, "num_tokens": 5 * 32 * 22.5, "step_time": 3.0}
    row |= {"completions/mean_length": 2.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    text = plan_of(capsys, recipe, "--like", tmp_path, "--prompt_tokens", 20, *flags)
    assert f"40 steps write {40 * 32 * mean:,.0f} tokens" in text
    # The run itself took 3 seconds a step.
    assert f"a step takes {3 * (20 + mean) / 22.5:.1f} s" in text
    assert why.format(tmp_path) in text
    # Such as that of another machine.
    given = plan_of(
        capsys,
        *(recipe, "--like", tmp_path, "--prompt_tokens", 20, *flags),
        *("--tokens_per_second", 48),
    )
    assert f"a step takes {32 * (20 + mean) / 48:.1f} s" in given


def test_without_a_limit_no_length_is_the_most(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = with_prompts(tiny_checkpoint, tmp_path, 10)
    settings = json.loads(recipe.read_text())
    recipe.write_text(json.dumps(settings | {"max_completion_length": None}))
    text = plan_of(capsys, recipe, "--prompt_tokens", 20)
    assert f"40 steps write {40 * 32 * 20:,} tokens" in text


def test_a_machine_without_a_gpu_is_planned_for(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = with_prompts(tiny_checkpoint, tmp_path, 10)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = plan_of(capsys, recipe)
    assert "rollout of one CPU" in text and "this machine (" in text and "GPU x" not in text
    # How long a first run takes is measured; the commands are said.
    assert f"grpo-hf train {recipe} --max_steps 2" in text and "--like runs/rate" in text
    for flags in (["--device", "cuda"], ["--gpus", 1]):
        text = plan_of(capsys, recipe, *flags)
        assert "rollout of one GPU" in text and "this machine" not in text


def test_the_float32_copy_at_the_start_is_said(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = [RECIPES / "gsm8k.yaml", "--model_name_or_path", tiny_checkpoint]
    # 904,704 parameters of 4 bytes.
    said = "before the first step the weights are measured in float32, 3 MiB more"
    assert said in plan_of(capsys, *recipe, "--dtype", "bfloat16")
    assert "measured in float32" not in plan_of(capsys, *recipe, "--dtype", "float32")


def test_no_weights_are_needed(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
    text = plan_of(capsys, RECIPES / "gsm8k.yaml", "--model_name_or_path", folder)
    assert "904,704 parameters" in text


def test_a_recipe_for_several_gpus_is_planned_on_one_machine(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--model_name_or_path", tiny_checkpoint, "--per_device_train_batch_size", 2]
    settings += ["--gradient_accumulation_steps", 1]
    # 2 rows are no whole group of 8, and 4 GPUs x 2 rows are.
    text = plan_of(capsys, RECIPES / "gsm8k.yaml", "--gpus", 4, *settings)
    assert "4 GPUs x 2 rows x 1 micro-batch = 8 completions of 1 prompt" in text


@pytest.mark.long
def test_the_table_in_the_documentation_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = plan_of(capsys, RECIPES / "gsm8k.yaml", "--table")
    document = (RECIPES.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert table in document


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "could not be fetched from the Hub"),
        ({"--model_name_or_path": "checkpoint", "--like": "nothing"}, "nothing"),
    ],
)
def test_a_mistake_is_said(
    given: dict[str, str],
    said: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "checkpoint").symlink_to(tiny_checkpoint)
    flags = []
    for name, value in given.items():
        flags += [name, str(tmp_path / value)]
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", str(RECIPES / "gsm8k.yaml"), *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2 and said in error and "Traceback" not in error


@pytest.mark.parametrize(
    "flag", ["gpus", "prompt_tokens", "completion_tokens", "tokens_per_second", "dollars_per_hour"]
)
@pytest.mark.parametrize("value", ["0", "-3", "nan", "inf", "many"])
def test_what_is_asked_with_is_above_0(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", str(RECIPES / "gsm8k.yaml"), f"--{flag}", value])
    assert end.value.code == 2 and f"--{flag}: expected a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("num_processes: abc", "num_processes is 'abc'; expected a number above 0"),
        ("num_processes: -1", "num_processes is -1"),
        ("num_processes:", "num_processes is None"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: [1]", r"the stage of ZeRO is \[1\]"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: x}", "ZeRO is 'x'"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: none.json}",
            r"none\.json: no stage of ZeRO in it",
        ),
        ("[1]", "expected a configuration of accelerate"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_broken_configuration_of_accelerate(settings: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(settings)
    with pytest.raises(ConfigError, match=said):
        plan.gpus_of(plan.Question(accelerate=file))


def test_a_training_that_fits_is_not_warned_of(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warn(recipe_of(tiny_checkpoint, tmp_path))
    assert capsys.readouterr().out == ""


def test_a_training_that_does_not_fit_is_warned_of(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_of(tiny_checkpoint, tmp_path)
    free = psutil.virtual_memory()._replace(available=2**23)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    prompts = preflight.check_model(recipe, preflight.check_task(recipe))
    lines = capsys.readouterr().out.splitlines()
    warnings = [line for line in lines if "warning" in line]
    assert len(warnings) == 1
    assert "8 MiB are free" in warnings[0]
    # It is a warning, and the run goes on.
    assert len(prompts.train) == 16


@pytest.mark.parametrize(
    "broken", [RuntimeError("no such attention"), KeyError("x"), AssertionError()]
)
def test_what_cannot_be_planned_ends_no_run(
    broken: Exception,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise broken

    monkeypatch.setattr(plan, "shape_of", fail)
    warn(recipe_of(tiny_checkpoint, tmp_path))
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "the memory of this run is not planned" in said
    assert type(broken).__name__ in said


def test_the_warning_takes_no_time(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_checkpoint, tmp_path)
    warn(recipe)
    started = time.process_time()
    warn(recipe)
    assert time.process_time() - started < 0.5


def test_the_warning_changes_nothing_of_a_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_checkpoint, tmp_path)
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    before = (config.to_dict(), torch.get_rng_state().tolist(), random.getstate())
    settings = repr((recipe.model, recipe.training, recipe.given))
    plan.warn_if_too_large(recipe, config, 12)
    assert (config.to_dict(), torch.get_rng_state().tolist(), random.getstate()) == before
    assert repr((recipe.model, recipe.training, recipe.given)) == settings


def test_a_reward_model_takes_memory(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with_model = recipe_of(tiny_checkpoint, tmp_path)
    with_model.task.rewards = [{"reward_model": {"model": str(tiny_checkpoint)}}]  # type: ignore[list-item]
    run = plan.plan_facts(with_model, plan.Question())
    assert run.reward_bytes == 4 * run.shape.parameters
    # An adapter has no configuration of its own: that of its base counts.
    adapter = tmp_path / "adapter"
    LoraConfig(base_model_name_or_path=str(tiny_checkpoint)).save_pretrained(adapter)
    for model, said in ((adapter, None), (tmp_path / "none", "no such model"), (tmp_path, "no mo")):
        with_model.task.rewards = [{"reward_model": {"model": str(model)}}]  # type: ignore[list-item]
        with nullcontext() if said is None else pytest.raises(ModelError, match=said):
            assert plan.plan_facts(with_model, plan.Question()).reward_bytes == run.reward_bytes


@pytest.mark.parametrize(
    ("settings", "gpus", "strategy"),
    [
        ("distributed_type: MULTI_GPU\nnum_processes: 4\n", 4, "ddp"),
        ("distributed_type: FSDP\nnum_processes: 8\n", 8, "fsdp"),
        (
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 3\n",
            2,
            "zero3",
        ),
    ],
)
def test_a_configuration_of_accelerate_says_how_gpus_share(
    settings: str, gpus: int, strategy: str, tmp_path: Path
) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(settings)
    assert plan.gpus_of(plan.Question(accelerate=file)) == (gpus, strategy)


def test_zero_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    own, file = tmp_path / "own.json", tmp_path / "accelerate.yaml"
    own.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    nested = f"deepspeed_config: {{deepspeed_config_file: {own}}}"
    file.write_text(f"distributed_type: DEEPSPEED\nnum_processes: 2\n{nested}\n")
    assert plan.gpus_of(plan.Question(accelerate=file)) == (2, "zero3")


@pytest.mark.parametrize(
    ("environment", "strategy"),
    [
        ({}, "ddp"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "zero2"),
    ],
)
def test_before_a_training_the_launcher_says_how_gpus_share(
    environment: dict[str, str],
    strategy: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_of(tiny_checkpoint, tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    planned = []
    monkeypatch.setattr(plan, "fit_into", lambda run, device: planned.append(run) or FITS)
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    plan.warn_if_too_large(recipe, config, 12)
    assert planned[0].strategy == strategy
