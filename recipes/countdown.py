"""Countdown with GRPO: reach a target with each of the given numbers once, and learn to search for the expression.

    accelerate launch recipes/countdown.py                                       # Qwen2.5-1.5B-Instruct, from the Hub
    accelerate launch recipes/countdown.py --config recipes/countdown_tiny.yaml  # embedded model, offline, minutes
    accelerate launch recipes/countdown.py --dataset_config "numbers=3,largest=50,operators=+-*"   # easier problems

The task of TinyZero and the objective of GRPO-Zero: groups of answers, a reward of 1 for the solution and 0.1 for its
form, advantages within the group, a mean over all tokens of the batch, no KL term, and no gradient from answers that
hit the length limit (DAPO, arXiv 2503.14476, sections 3.3 and 3.4). Problems are generated: numbers are drawn, joined
by random operators, and what comes out is the target, so each has a solution. A set of numbers belongs to the split
that a digest of it picks: no set of the held-out problems occurs in training.

The embedded model learns the form and a little arithmetic from solved problems of a third split first; a model from the
Hub has both.
"""

import hashlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_hf.errors import ConfigError, did_you_mean
from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent
SPLITS = ("test",) + ("cold_start",) * 3 + ("train",) * 4  # eighths
ROWS = {
    "train": 8192,
    "test": 1024,
    "cold_start": 8192,
}  # at most: easy settings have fewer problems
DRAWS_WITHOUT_NEWS = 20_000  # then all problems of a split have been seen, or nearly all


@dataclass(frozen=True)
class Difficulty:
    """How hard the problems are."""

    numbers: int = 4
    largest: int = 99
    operators: str = "+-*/"

    @classmethod
    def read(cls, text: str | None) -> "Difficulty":
        """`numbers=3,largest=20,operators=+-`; what is left out has its default.

        Raises:
            ConfigError: something else.
        """
        given = dict(
            part.strip().partition("=")[::2] for part in (text or "").split(",") if part.strip()
        )
        known = {field.name: type(field.default) for field in fields(cls)}
        if unknown := next((name for name in given if name not in known), None):
            raise ConfigError(
                f"dataset_config has {unknown!r}.{did_you_mean(unknown, known)} Expected {', '.join(known)}, as in "
                "numbers=3,largest=20,operators=+-."
            )
        try:
            found = cls(**{name: known[name](value) for name, value in given.items()})
        except ValueError as error:
            raise ConfigError(
                f"dataset_config {text!r}: {error}; expected a whole number."
            ) from None
        possible = 2 <= found.numbers <= 6 and found.largest >= 2 and found.operators
        if not possible or not {*found.operators} <= {*"+-*/"}:
            raise ConfigError(
                f"dataset_config {text!r}: expected 2 to 6 numbers, largest >= 2 and some of + - * /."
            )
        return found


def split_of(numbers: Sequence[int]) -> str:
    """The split that these numbers belong to, in whatever order."""
    return SPLITS[hashlib.sha256(repr(sorted(numbers)).encode()).digest()[0] % len(SPLITS)]


def problems(split: str, difficulty: Difficulty, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Distinct problems of one split, until there are no more: question, numbers, target and a right answer."""
    rng = random.Random(f"{split}/{seed}")
    seen: set[tuple[Any, ...]] = set()
    draws = 0
    while draws < DRAWS_WITHOUT_NEWS:
        draws += 1
        numbers = [rng.randint(1, difficulty.largest) for _ in range(difficulty.numbers)]
        solution = _chain(numbers, rng.choices(difficulty.operators, k=difficulty.numbers - 1))
        if split_of(numbers) != split or solution is None:
            continue
        expression, target = solution
        if (key := (*sorted(numbers), target)) in seen:
            continue
        seen.add(key)
        draws = 0
        if {*difficulty.operators} & {*"*/"}:
            rng.shuffle(
                numbers
            )  # the order would give a part of the solution away; in a sum it gives nothing
        yield {
            "question": f"Make {target} from {', '.join(map(str, numbers))}.",
            "numbers": numbers,
            "target": target,
            "answer": f"<answer>{expression}</answer>",
        }


def _chain(numbers: Sequence[int], operators: Sequence[str]) -> tuple[str, int] | None:
    """Numbers joined from left to right: expression and value; None where a value is no positive whole number."""
    value, expression, loose = numbers[0], str(numbers[0]), False
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "/":
            value, remainder = divmod(value, number)
            if remainder:
                return None
        else:
            value = {"+": value + number, "-": value - number, "*": value * number}[operator]
        if value < 1:
            return None
        expression = f"({expression})" if loose and operator in "*/" else expression
        expression, loose = f"{expression} {operator} {number}", operator in "+-"
    return expression, value


def write_problems(folder: Path, difficulty: Difficulty, seed: int) -> Path:
    """Write train.jsonl and test.jsonl into a folder named after what decides them."""
    digest = hashlib.sha256(repr((difficulty, seed, ROWS)).encode()).hexdigest()[:8]
    target = folder / f"problems-{digest}"
    target.mkdir(parents=True, exist_ok=True)
    (target / "difficulty.json").write_text(
        json.dumps(asdict(difficulty) | {"seed": seed}), encoding="utf-8"
    )
    for split in ("train", "test"):
        rows = islice(problems(split, difficulty, seed=seed), ROWS[split])
        (target / f"{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return target


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the flags describe."""
    quiet()
    from accelerate import PartialState

    from grpo_hf.runs.recipe import EMBEDDED_MODEL, read_recipe

    with exit_on_error():
        recipe = read_recipe(arguments, default=HERE / "countdown.yaml")
        difficulty, seed = Difficulty.read(recipe.task.dataset_config), recipe.training.seed
        beside = Path(recipe.training.output_dir).parent
        if recipe.task.dataset_path is None and recipe.task.dataset_name is None:
            with PartialState().main_process_first():
                recipe.task.dataset_path = str(write_problems(beside, difficulty, seed))

        from grpo_hf.runs.preflight import check_task
        from grpo_hf.runs.train import train

        if recipe.model.model_name_or_path == EMBEDDED_MODEL:
            from grpo_hf.demo.cold_start import cold_start

            check_task(recipe)  # before the minute that the cold start takes
            recipe.model.model_name_or_path = str(
                cold_start(
                    beside,
                    steps=recipe.task.cold_start_steps,
                    seed=seed,
                    use_cpu=recipe.training.use_cpu,
                    worked=list(
                        islice(problems("cold_start", difficulty, seed=seed), ROWS["cold_start"])
                    ),
                )
            )
            recipe.task.cold_start_steps = 0
        train(recipe)


if __name__ == "__main__":
    main(sys.argv[1:])
