"""Rows and tokens of a run, against packed rows that are laid out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.models import block

from grpo_hf import GRPOConfig
from grpo_hf.config_checks import planned_processes
from grpo_hf.planning.geometry import Geometry, picture
from grpo_hf.update.packing import PackedGroups


def geometry(**settings: int) -> Geometry:
    sizes = {
        "gpus": 1,
        "group": 4,
        "batch": 8,
        "parts": 2,
        "accumulation": 2,
        "iterations": 1,
        "prompt": 7,
        "completion": 5,
    }
    return Geometry(**(sizes | settings), packed=True)


@pytest.mark.parametrize(("group", "rows"), [(4, 8), (8, 8), (16, 8), (2, 8)])
def test_tokens_of_a_packed_row_are_those_that_are_laid_out(group: int, rows: int) -> None:
    planned = geometry(group=group, batch=rows)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, 90, (planned.prompts_of(rows), 7), generator=generator)
    prompts = prompts.repeat_interleave(min(group, rows), dim=0)
    completions = torch.randint(5, 90, (rows, 5), generator=generator)
    layout = PackedGroups.pack(*block(prompts.tolist(), completions.tolist()))
    assert layout.input_ids.shape[1] == planned.row_tokens(rows)


def test_a_generation_batch_of_all_gpus_is_cut_for_each(tmp_path: Path) -> None:
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "num_generations": 8}
    settings |= {"per_device_train_batch_size": 4, "generation_batch_size": 64}
    with planned_processes(4):
        args = GRPOConfig(**settings)
    assert args.world_size == 1
    assert Geometry.of(args, gpus=4, prompt=10).rollout_rows == 16
    assert Geometry.of(GRPOConfig(**settings), gpus=1, prompt=10).rollout_rows == 64


def test_the_picture_says_what_is_computed() -> None:
    text = "\n".join(picture(geometry()))
    assert "4 prompts x 4 completions = 16 rows" in text
    assert "[pppp]cccc [pppp]cccc" in text
    assert "2 x 6 prompt tokens once + 8 x 5 = 52 tokens; TRL's block has 96" in text
    assert "1 GPU x 8 rows x 2 micro-batches = 16 completions of 4 prompts" in text


def test_scoring_is_cut_by_tokens() -> None:
    whole = geometry(parts=8)
    assert whole.scoring_rows == whole.rollout_rows == 64
    few = replace(whole, forward_tokens=60)
    assert few.row_tokens(few.scoring_rows) <= 60 < few.row_tokens(few.scoring_rows + 1)
    # A longer row has a forward to itself.
    assert replace(whole, forward_tokens=3).scoring_rows == 1
