"""Evaluate a run in processes that see different disks, as those of two machines do: RUN FOLDER.

The first process then finds a disk that it cannot write to, and the others one that they can.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate import PartialState

from grpo_hf.evaluation.answers import judging
from grpo_hf.evaluation.evaluate import evaluate
from grpo_hf.evaluation.problem_set import Answering, ProblemSet
from grpo_hf.runs.trained import open_run
from grpo_hf.scoring.registry import load_reward

run, folder = map(Path, sys.argv[1:])
rank = PartialState(cpu=True).process_index
trained = open_run(run)
rewards = [load_reward("./letters.py:letter", relative_to=run)]
rows = [{"prompt": f"Say {number}.", "answer": "e"} for number in range(5)]
settings: Any = SimpleNamespace(reward_workers=0, reward_timeout=None)
counted = 0


def count(side: str, kind: str, more: int) -> None:
    global counted
    counted += more


def evaluated(place: Path) -> dict[str, Any]:
    with judging(rewards, settings) as scored:
        return evaluate(
            trained.model,
            trained.tokenizer,
            ProblemSet("letters", rows, scored),
            Answering(max_new_tokens=4, batch_size=2),
            place,
            progress=count,
        )


first = evaluated(folder / str(rank))
answered = counted
# The first process alone has a summary on its disk.
assert (folder / str(rank) / "letters.json").is_file() == (rank == 0)
assert evaluated(folder / str(rank)) == first and counted == answered
folder.mkdir(exist_ok=True)
(folder / "file").touch()
try:
    evaluated(folder / ("file" if rank == 0 else "other"))
except OSError as error:
    print(f"process {rank}: {error.strerror}, {counted - answered} answers", flush=True)
PartialState().wait_for_everyone()
