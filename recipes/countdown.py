"""Train on Countdown with GRPO: combine given numbers, each used once, to reach a target.

    # Qwen2.5-1.5B-Instruct, from the Hub
    python recipes/countdown.py
    # easier problems
    python recipes/countdown.py --dataset_config "numbers=3,largest=50,operators=+-*"
    # embedded model, offline, minutes
    python recipes/countdown.py --config recipes/countdown_tiny.yaml

The task is that of TinyZero, and the objective that of GRPO-Zero. The reward is 1 for a correct
solution and 0.1 for the right format. Advantages are relative to the group. The loss is a mean over
all tokens of the batch, without a KL term. Completions that reach the length limit have no gradient
(DAPO, arXiv 2503.14476, sections 3.3 and 3.4).

The problems are generated. Numbers are drawn and joined by random operators, and the result is the
target, so every problem has a solution. A digest of the numbers decides the split of a problem. So
no set of numbers in the held-out problems occurs in training.

The embedded model first learns the format and some arithmetic from solved problems of a third
split. A model from the Hub knows both already.
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

# A digest picks one of these eighths: one for evaluation, three for the cold start, four for
# training.
SPLITS = ("test",) + ("cold_start",) * 3 + ("train",) * 4

# At most this number of problems per split. Easy settings have fewer problems.
ROWS = {"train": 8192, "test": 1024, "cold_start": 8192}

# After this number of draws without a new problem, a split has no more problems, or hardly any.
DRAWS_WITHOUT_NEWS = 20_000

OPERATORS = frozenset("+-*/")


@dataclass(frozen=True)
class Difficulty:
    """Difficulty says how hard the problems are."""

    numbers: int = 4
    largest: int = 99
    operators: str = "+-*/"

    @classmethod
    def read(cls, text: str | None) -> "Difficulty":
        """Read a text such as `numbers=3,largest=20,operators=+-`; missing parts have defaults.

        Raises:
            ConfigError: the text has another form, or describes impossible problems.
        """
        types = {field.name: type(field.default) for field in fields(cls)}
        texts = {}
        for name, value in _named_parts(text or ""):
            if name not in types:
                raise ConfigError(
                    f"dataset_config has {name!r}.{did_you_mean(name, types)} "
                    f"Expected {', '.join(types)}, as in numbers=3,largest=20,operators=+-."
                )
            texts[name] = value
        values = {}
        try:
            for name, value in texts.items():
                values[name] = types[name](value)
        # Raised by int().
        except ValueError as error:
            raise ConfigError(
                f"dataset_config {text!r}: {error}; expected a whole number."
            ) from None
        difficulty = cls(**values)
        if not difficulty.is_possible():
            raise ConfigError(
                f"dataset_config {text!r}: expected 2 to 6 numbers, largest >= 2 "
                "and some of + - * /."
            )
        return difficulty

    def is_possible(self) -> bool:
        """Return whether there are problems of this difficulty."""
        if not 2 <= self.numbers <= 6 or self.largest < 2:
            return False
        return bool(self.operators) and OPERATORS.issuperset(self.operators)


def _named_parts(text: str) -> list[tuple[str, str]]:
    """Return the pairs of name and value in `name=value,name=value`."""
    pairs = []
    for part in text.split(","):
        if part.strip():
            name, _, value = part.strip().partition("=")
            pairs.append((name, value))
    return pairs


def split_of(numbers: Sequence[int]) -> str:
    """Return the split of a set of numbers; their order does not matter."""
    # Python's own hash() of a text differs between processes.
    digest = hashlib.sha256(repr(sorted(numbers)).encode()).digest()
    return SPLITS[digest[0] % len(SPLITS)]


def problems(split: str, difficulty: Difficulty, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield distinct problems of one split until there are no more.

    A problem has a question, numbers, a target, and a correct answer.
    """
    rng = random.Random(f"{split}/{seed}")
    # In a sum the order of the numbers tells nothing about the solution. With * and / it would give
    # a part of the solution away.
    must_shuffle = not set(difficulty.operators).isdisjoint("*/")
    seen: set[tuple[Any, ...]] = set()
    draws = 0
    while draws < DRAWS_WITHOUT_NEWS:
        draws += 1
        numbers = [rng.randint(1, difficulty.largest) for _ in range(difficulty.numbers)]
        solution = _chain(numbers, rng.choices(difficulty.operators, k=difficulty.numbers - 1))
        if split_of(numbers) != split or solution is None:
            continue
        expression, target = solution
        key = (*sorted(numbers), target)
        if key in seen:
            continue
        seen.add(key)
        draws = 0
        if must_shuffle:
            rng.shuffle(numbers)
        yield {
            "question": f"Make {target} from {', '.join(map(str, numbers))}.",
            "numbers": numbers,
            "target": target,
            "answer": f"<answer>{expression}</answer>",
        }


def _chain(numbers: Sequence[int], operators: Sequence[str]) -> tuple[str, int] | None:
    """Join numbers from left to right; return the expression and its value.

    The result is None if a value on the way is not a positive whole number.
    """
    value = numbers[0]
    expression = str(value)
    is_sum = False
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "/" and value % number:
            return None
        value = _apply(operator, value, number)
        if value < 1:
            return None
        # * and / bind more tightly than the + or - of the expression so far.
        if is_sum and operator in "*/":
            expression = f"({expression})"
        expression = f"{expression} {operator} {number}"
        is_sum = operator in "+-"
    return expression, value


def _apply(operator: str, left: int, right: int) -> int:
    """Return the value of `left operator right`."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left // right


def write_problems(folder: Path, difficulty: Difficulty, seed: int) -> Path:
    """Write train.jsonl and test.jsonl into a subfolder, and return it.

    A digest of the settings names the subfolder, so other settings get another one.
    """
    digest = hashlib.sha256(repr((difficulty, seed, ROWS)).encode()).hexdigest()[:8]
    target = folder / f"problems-{digest}"
    target.mkdir(parents=True, exist_ok=True)
    # For readers: the digest does not tell the settings.
    settings = json.dumps(asdict(difficulty) | {"seed": seed})
    (target / "difficulty.json").write_text(settings, encoding="utf-8")
    for split in ("train", "test"):
        lines = []
        for row in islice(problems(split, difficulty, seed=seed), ROWS[split]):
            lines.append(json.dumps(row) + "\n")
        (target / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return target


def cold_started(recipe: Any, difficulty: Difficulty, cache: Path) -> str:
    """Return the folder of the embedded model after a cold start on solved problems."""
    from grpo_hf.demo.cold_start import cold_start, like_the_run

    seed = recipe.training.seed
    rows = problems("cold_start", difficulty, seed=seed)
    checkpoint = cold_start(
        cache,
        steps=recipe.task.cold_start_steps,
        **like_the_run(recipe.training),
        worked=list(islice(rows, ROWS["cold_start"])),
    )
    return str(checkpoint)


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the flags describe."""
    quiet()
    with exit_on_error():
        from accelerate import PartialState

        from grpo_hf.runs.recipe import EMBEDDED_MODEL, read_recipe

        recipe = read_recipe(arguments, default=HERE / "countdown.yaml")
        difficulty = Difficulty.read(recipe.task.dataset_config)
        # Problems and checkpoint lie beside the run's folder, where later runs find them.
        cache = Path(recipe.training.output_dir).parent
        if recipe.task.dataset_path is None and recipe.task.dataset_name is None:
            # The other processes read the files that the first one writes.
            with PartialState().main_process_first():
                folder = write_problems(cache, difficulty, recipe.training.seed)
            recipe.task.dataset_path = str(folder)

        from grpo_hf.runs.preflight import check_task
        from grpo_hf.runs.train import train

        if recipe.model.model_name_or_path == EMBEDDED_MODEL:
            # The cold start takes a minute, so errors are found before it.
            check_task(recipe)
            recipe.model.model_name_or_path = cold_started(recipe, difficulty, cache)
            # `train` would otherwise make another cold start, on word problems.
            recipe.task.cold_start_steps = 0
        train(recipe)


if __name__ == "__main__":
    main(sys.argv[1:])
