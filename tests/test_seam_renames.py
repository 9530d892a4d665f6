"""What happens when TRL or PEFT renames what we rely on: the test of the seam says which name."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Private names of which each is somewhere in a recent minor's diff, or could be.
RENAMED = [
    ("trl", "_metrics"),
    ("trl", "_logs"),
    ("trl", "_tokenizer"),
    ("trl", "_is_vlm"),
    ("trl", "_step"),
    ("trl", "_buffered_inputs"),
    ("trl", "_entropy_bonus_enabled"),
    ("trl", "_tokenize_prompts"),
    ("trl", "_generate_single_turn"),
    ("trl", "_get_per_token_logps_and_entropies"),
    ("trl", "_calculate_rewards"),
    ("trl", "_compute_loss"),
    ("trl", "fused_lm_head"),
    ("trl", "shift_labels"),
    ("trl", "use_adapter"),
    ("peft", "lora_variant"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name"), RENAMED)
def test_a_renamed_name_is_reported(package: str, name: str, tmp_path: Path):
    (installed,) = find_spec(package).submodule_search_locations
    copied = tmp_path / package
    shutil.copytree(installed, copied, ignore=shutil.ignore_patterns("__pycache__"))
    renamed = 0
    for file in copied.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        changed, count = re.subn(rf"(?<![A-Za-z0-9_]){name}(?![A-Za-z0-9_])", f"{name}_moved", text)
        if count:
            file.write_text(changed, encoding="utf-8")
            renamed += count
    assert renamed, f"{package} has no {name} any more: choose another name"
    test = Path(__file__).with_name("test_trl_seam.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "250"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    reasons = [line for line in done.stdout.splitlines() if line.startswith(("E ", "FAILED"))]
    assert any(re.search(rf"(?<!\w){name}(?!\w)", line) for line in reasons), "\n".join(reasons)
