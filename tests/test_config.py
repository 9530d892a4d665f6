"""Tests of GRPOConfig: the paper's defaults, TRL's fields, and geometry errors with advice."""

import inspect
import re
from dataclasses import fields
from types import SimpleNamespace

import pytest
from support.settings import OURS
from trl import GRPOConfig as TRLGRPOConfig
from trl import GRPOTrainer

from grpo_hf import config
from grpo_hf.config import GRPOConfig
from grpo_hf.config_checks import check_geometry
from grpo_hf.errors import ConfigError


@pytest.fixture
def configured(tmp_path):
    def make(**settings):
        return GRPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **settings)

    return make


def geometry(**settings):
    """Return the fields that `check_geometry` reads, with TRL's defaults."""
    names = ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps")
    names += ("steps_per_generation", "generation_batch_size")
    return SimpleNamespace(
        **{f.name: f.default for f in fields(TRLGRPOConfig) if f.name in names} | settings
    )


class TestDefaults:
    def test_the_papers_objective(self, configured):
        """Check the settings of DeepSeekMath (arXiv 2402.03300).

        They are the sequence mean of token means, beta 0.04, one update, and the KL of equation 4.
        """
        args = configured()
        assert (args.loss_type, args.beta, args.num_iterations) == ("grpo", 0.04, 1)
        assert args.use_bias_correction_kl is False
        assert args.importance_sampling_level == "token"
        assert args.scale_rewards == "group"
        assert args.reference == "initial"

    def test_everything_else_is_trls(self):
        theirs = {f.name: (f.default, f.default_factory) for f in fields(TRLGRPOConfig)}
        ours = {f.name: (f.default, f.default_factory) for f in fields(GRPOConfig)}
        assert {name for name in ours if ours[name] != theirs.get(name)} == OURS

    def test_every_field_of_ours_is_documented(self):
        assert set(GRPOConfig.__annotations__) == OURS
        for name in OURS:
            assert GRPOConfig.__dataclass_fields__[name].metadata["help"]
            assert name in inspect.getdoc(GRPOConfig)

    def test_trls_fields_pass_through(self, configured):
        args = configured(
            loss_type="dapo", beta=0.0, epsilon_high=0.28, top_p=0.9, steps_per_generation=4
        )
        assert (args.loss_type, args.beta, args.epsilon_high, args.top_p) == (
            "dapo",
            0.0,
            0.28,
            0.9,
        )
        assert args.generation_batch_size == 4 * args.per_device_train_batch_size
        assert isinstance(args, TRLGRPOConfig)

    def test_bf16_only_where_an_accelerator_has_it(self, configured, monkeypatch):
        monkeypatch.setattr(config, "is_torch_bf16_gpu_available", lambda: True)
        assert configured().bf16 is False  # use_cpu
        assert configured(bf16=True).bf16 is True  # asked for
        # TRL's own checks would want the hardware.
        monkeypatch.setattr(TRLGRPOConfig, "__post_init__", lambda self: None)
        assert GRPOConfig(output_dir="x").bf16 is True
        assert GRPOConfig(output_dir="x", fp16=True).bf16 is False
        monkeypatch.setattr(config, "is_torch_bf16_gpu_available", lambda: False)
        assert GRPOConfig(output_dir="x").bf16 is False


@pytest.mark.parametrize("group", [1, 0, -8, None])
def test_a_group_of_less_than_two(configured, group):
    with pytest.raises(
        ConfigError,
        match=f"num_generations is {group}; a group needs at least 2.*--num_generations 8",
    ):
        configured(num_generations=group)


def test_unknown_reference(configured):
    with pytest.raises(
        ConfigError, match="reference is 'start'; expected one of 'initial', 'base'"
    ):
        configured(reference="start")


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale_rewards", "grop"), ("importance_sampling_level", "tokn"), ("temperature", 0.0)],
)
def test_what_trl_would_notice_in_the_middle_of_a_step(configured, name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; expected"):
        configured(**{name: value})


def test_what_ends_at_a_stop_string_would_be_left_out(configured):
    stopping = {"generation_kwargs": {"stop_strings": ["a"]}}
    with pytest.raises(ConfigError, match=r"at one of the stop_strings\. Leave out one"):
        configured(mask_truncated_completions=True, **stopping)
    assert configured(**stopping).generation_kwargs == stopping["generation_kwargs"]


GEOMETRIES = [
    {"num_generations": 8, "per_device_train_batch_size": 4},
    {"num_generations": 8, "per_device_train_batch_size": 12},
    {"num_generations": 8, "per_device_train_batch_size": 1},
    {"num_generations": 6, "per_device_train_batch_size": 7, "gradient_accumulation_steps": 3},
    {"num_generations": 16, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 3},
    {"num_generations": 8, "per_device_train_batch_size": 2, "steps_per_generation": 3},
    {"num_generations": 8, "per_device_train_batch_size": 1, "steps_per_generation": 1},
    {"num_generations": 8, "per_device_train_batch_size": 2, "generation_batch_size": 12},
    {"num_generations": 8, "per_device_train_batch_size": 8, "generation_batch_size": 7},
    {"num_generations": 8, "per_device_train_batch_size": 1, "generation_batch_size": 1},
    {"num_generations": 4, "per_device_train_batch_size": 3, "generation_batch_size": 9},
]


def advised(message):
    """Return both settings that an error suggests."""
    flags = re.findall(r"--(\w+) (\d+)", message.partition("Two settings that work:")[2])
    assert len(flags) == 2
    assert flags[0] != flags[1]
    return [{name: int(value)} for name, value in flags]


@pytest.mark.parametrize("settings", GEOMETRIES)
def test_torn_groups_name_the_geometry_and_two_ways_out(configured, settings):
    with pytest.raises(ConfigError) as error:
        configured(**settings)
    assert all(
        str(settings[name]) in str(error.value)
        for name in settings
        if name != "per_device_train_batch_size"
    )
    for advice in advised(str(error.value)):
        args = configured(**settings | advice)  # TRL's own checks run as well
        assert args.generation_batch_size % args.num_generations == 0


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("settings", GEOMETRIES)
def test_torn_groups_on_several_processes(monkeypatch, settings, processes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    batch, group = settings["per_device_train_batch_size"], settings["num_generations"]
    steps = settings.get("steps_per_generation") or settings.get("gradient_accumulation_steps", 1)
    rows = settings.get("generation_batch_size") or processes * batch * steps
    if rows % group == 0:
        check_geometry(geometry(**settings))
        return
    with pytest.raises(ConfigError) as error:
        check_geometry(geometry(**settings))
    if "generation_batch_size" not in settings:
        assert f"{processes} processes x per_device_train_batch_size {batch} x" in str(error.value)
        assert f"{steps} = {rows} completions" in str(error.value)
    for advice in advised(str(error.value)):
        mended = settings | advice
        check_geometry(geometry(**mended))
        micro = processes * mended["per_device_train_batch_size"]
        steps = mended.get("steps_per_generation") or mended.get("gradient_accumulation_steps", 1)
        rows = mended.get("generation_batch_size") or micro * steps
        assert rows % mended["num_generations"] == 0
        assert rows % micro == 0  # whole micro-batches
        assert mended["num_generations"] >= 2


def test_every_loss_of_trl_can_be_named():
    """Compare our choices with the names in TRL's code.

    TRL names its losses where it computes them: `self.loss_type == "cispo"`, or
    `self.loss_type in ["grpo", "sapo"]`.
    """
    source = inspect.getsource(GRPOTrainer._compute_loss)
    compared = re.findall(r"self\.loss_type (?:==|in) (\[[^]]*\]|\"\w+\")", source)
    theirs = {name for names in compared for name in re.findall(r"\w+", names)}
    assert theirs == set(GRPOConfig.__dataclass_fields__["loss_type"].metadata["choices"])
