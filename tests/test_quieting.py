"""Tests of the warnings that are silenced, and of those that are not."""

import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
import trl

from grpo_hf import GRPOConfig, GRPOTrainer, quieting

ROOT = Path(__file__).parents[1]
MakeTrainer = Callable[..., GRPOTrainer]


def test_training_warns_of_nothing_that_the_user_wrote(make_trainer: MakeTrainer):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        trainer = make_trainer(max_steps=1, gradient_checkpointing=True)
        trainer.train()
        with pytest.raises(FutureWarning, match="gradient_checkpointing_disable"):
            trainer.model.gradient_checkpointing_disable()


def test_a_setting_that_is_given_is_warned_about(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True)
        assert args.gradient_checkpointing and args.activation_checkpointing
        new = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, activation_checkpointing=False)
        assert not new.gradient_checkpointing
    with pytest.warns(FutureWarning, match="`gradient_checkpointing` is deprecated"):
        args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, gradient_checkpointing=False)
    assert not args.activation_checkpointing


def test_before_the_new_name_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """transformers 5.19, which vLLM for CPUs wants, has no `activation_checkpointing`."""
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.delattr(transformers.TrainingArguments, "activation_checkpointing")
    monkeypatch.setattr(trl.GRPOConfig, "__post_init__", lambda self: None)
    del args.activation_checkpointing
    args.__post_init__()
    assert not hasattr(args, "activation_checkpointing")


def test_a_warning_with_the_same_words_from_elsewhere_stays():
    text = "`gradient_checkpointing_enable` is deprecated"
    with quieting.old_names(), pytest.warns(FutureWarning, match=text):
        warnings.warn(text, FutureWarning, stacklevel=1)


def test_one_line_of_bitsandbytes_is_dropped(caplog: pytest.LogCaptureFixture):
    quieting.drop_kernel_line()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    # Programs of other tests have silenced the whole library.
    caplog.set_level(logging.WARNING, "bitsandbytes")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "none")
    logger.warning("Something else.")
    assert caplog.messages == ["Something else."]


def test_trl_says_once_that_no_reward_judged_a_completion(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("a library that logs rows")
    logger.addFilter(quieting._OnceInShort(quieting._NO_REWARD, "in short"))
    for row in range(3):
        logger.warning(f"[RANK 0] {quieting._NO_REWARD}:\n{{'row': {row}}}")
        logger.warning("another line")
    assert caplog.messages == ["in short", *["another line"] * 3]


@pytest.mark.long
@pytest.mark.parametrize(
    "program",
    [
        "from grpo_hf import GRPOTrainer",
        "import grpo_hf.errors, transformers.integrations.bitsandbytes, bitsandbytes",
        "import benchmarks.update",
    ],
)
def test_importing_prints_nothing(program: str):
    assert_quiet(program)


@pytest.mark.long
def test_the_readme_s_script_is_quiet_before_its_first_line_of_work():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index("```python\nfrom grpo_hf import GRPOConfig") :]
    imports = [line for line in block.splitlines()[1:5] if line.startswith("from ")]
    assert len(imports) == 3
    assert_quiet("\n".join(imports))


def assert_quiet(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("", "")
