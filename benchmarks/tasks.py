"""The tasks of `benchmarks.learning`: short ones that a small instruct model can sometimes do.

Those on real data read it where it lies: the calculations in GSM8K's worked solutions
(arXiv 2110.14168, MIT), SVAMP's texts (arXiv 2103.07191, MIT), and the functions of MBPP
(arXiv 2108.07732, CC BY 4.0). Every prompt begins with a question and its answer, without which a
model of this size starts to talk about mathematics.
"""

import operator
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_hf.data.known_sets import KNOWN_SETS
from grpo_hf.run_files import read_lines

REWARDS = Path(__file__).resolve().parent / "data" / "task_rewards.py"
# Problems that are held out, and problems on which settings are chosen.
HELD_OUT = 200
CHOICE = 100

Problem = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A task with its data and what its recipe says.

    Args:
        name: how it is asked for.
        about: what is asked and what is right, in a sentence.
        source: where the problems come from, in a sentence.
        reward: the function of `data/task_rewards.py` that says what is right.
        problems: makes all rows from the folder with the data.
        tests: makes the rows that are held out, where the data has a split for them; else they are
            some of `problems`.
        settings: of the recipe, beside those that every task shares.
        recipe: the file in recipes/ that is the whole task, data and all, if there is one.
    """

    name: str
    about: str
    source: str
    reward: str = ""
    problems: Callable[[Path | None], list[Problem]] = lambda _: []
    settings: dict[str, Any] = field(default_factory=dict)
    tests: Callable[[Path | None], list[Problem]] | None = None
    recipe: str | None = None

    def splits(self, data: Path | None) -> tuple[list[Problem], list[Problem], list[Problem]]:
        """Return the rows for training, for choosing settings, and those that are held out.

        Equal questions count once, so that no question is on two sides.

        Raises:
            SystemExit: the data of the task is not there.
        """
        held_out = self.tests(data) if self.tests else []
        hidden = {_question(row) for row in held_out}
        asked = {_question(row): row for row in self.problems(data)}
        rows = [row for question, row in asked.items() if question not in hidden]
        random.Random(0).shuffle(rows)
        if not held_out:
            held_out, rows = rows[:HELD_OUT], rows[HELD_OUT:]
        return rows[CHOICE:], rows[:CHOICE], held_out


def _question(row: Problem) -> str:
    """Return what the last message of a prompt asks."""
    asked: str = row["prompt"][-1]["content"]
    return asked


def _turns(*texts: str) -> list[dict[str, str]]:
    """Return the messages of a conversation that a user begins."""
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def _lines(data: Path | None, file: str) -> list[Problem]:
    if data is None or not (data / file).is_file():
        where = "--data is not given" if data is None else f"{data} does not hold it"
        raise SystemExit(
            f"error: this task reads {file}, and {where}. Name the folder with --data."
        )
    return read_lines(data / file)


# A calculation as the notes of GSM8K's solutions have it: <<48/2=24>>.
_NOTE = re.compile(r"<<(\d+)([-+*/])(\d+)=\d+>>")
_SIGNS = {
    "+": ("plus", operator.add),
    "-": ("minus", operator.sub),
    "*": ("times", operator.mul),
    "/": ("divided by", operator.truediv),
}
_LARGEST = 100


def _calculations(data: Path | None) -> list[Problem]:
    rows = []
    for line in _lines(data, "gsm8k/train.jsonl"):
        for left, sign, right in _NOTE.findall(line["answer"]):
            word, calculate = _SIGNS[sign]
            if max(int(left), int(right)) > _LARGEST:
                continue
            answer = calculate(int(left), int(right))
            # Some notes round a quotient.
            if answer == int(answer) and answer >= 0:
                question = f"What is {left} {word} {right}?"
                prompt = _turns("What is 25 plus 8?", "25 plus 8 is 33.", question)
                rows.append({"prompt": prompt, "answer": int(answer), "type": word})
    return rows


def _smallest_numbers(data: Path | None) -> list[Problem]:
    rows = []
    ask = "What is the smallest number in this text?"
    example = f"Ann had 12 coins, lost 7 and found 25 shells.\n{ask}"
    for line in _lines(data, "svamp/test.jsonl"):
        text = KNOWN_SETS["svamp"].make(line)["question"]
        numbers = set(map(int, re.findall(r"\d+", text)))
        if len(numbers) > 1:
            prompt = _turns(example, "The smallest number is 7.", f"{text}\n{ask}")
            rows.append({"prompt": prompt, "answer": min(numbers)})
    return rows


_SIGNATURE = re.compile(r"def \w+\(([^()]*)\)")


def _last_arguments(data: Path | None) -> list[Problem]:
    rows = []
    ask = "What is the last argument of this function?"
    example = f"def add(left, right, scale):\n{ask}"
    for line in _lines(data, "mbpp/mbpp.jsonl"):
        found = _SIGNATURE.search(line["code"])
        if found is None:
            continue
        # Without types and defaults.
        names = [re.split("[:=]", each)[0].strip() for each in found[1].split(",")]
        if len(names) > 1 and all(name.isidentifier() for name in names):
            prompt = _turns(example, "The last argument is scale.", f"{found[0]}:\n{ask}")
            rows.append({"prompt": prompt, "answer": names[-1]})
    return rows


# Solutions write every calculation a second time in such brackets.
_BRACKETS = re.compile(r"<<[^>]*>>")


def gsm8k_solutions(data: Path | None, split: str = "train") -> list[Problem]:
    """Return GSM8K's problems with their solutions as a model is to write them.

    Raises:
        SystemExit: the data is not there.
    """
    rows = []
    for line in _lines(data, f"gsm8k/{split}.jsonl"):
        solution, _, answer = line["answer"].rpartition("####")
        solution, calculations = _BRACKETS.subn("", solution)
        rows.append(
            {
                "prompt": _turns(line["question"]),
                "solution": f"{solution}#### {answer.strip()}",
                "answer": int(answer.replace(",", "")),
                "calculations": calculations,
            }
        )
    return rows


def _gsm8k(
    split: str, *example: str, calculations: tuple[int, ...] = (), rows: int | None = None
) -> Callable[[Path | None], list[Problem]]:
    """Return what makes GSM8K's prompts, behind an example, and answers without the solutions.

    Args:
        calculations: of the problems that are wanted; by default of any number.
        rows: how many of those, by default all.
    """

    def make(data: Path | None) -> list[Problem]:
        made = []
        for row in gsm8k_solutions(data, split):
            if not calculations or row["calculations"] in calculations:
                made.append({"prompt": _turns(*example, _question(row)), "answer": row["answer"]})
        return made[:rows]

    return make


_EXAMPLE = (
    "Tom has 3 boxes with 6 pens each. He gives 5 pens to Ann. How many pens does he have left?",
    "The boxes hold 3 * 6 = 18 pens.\nHe has 18 - 5 = 13 pens left.\n#### 13",
)
# In the words of the calculations alone, and as short.
_SHORT_EXAMPLE = (_EXAMPLE[0], "3 times 6 is 18. 18 minus 5 is 13.")
_SHORT = (1, 2)
# A GPU's: 512 completions a step, in two updates.
_ON_A_GPU = {
    "use_cpu": False,
    "dtype": "bfloat16",
    "per_device_train_batch_size": 256,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "per_device_eval_batch_size": 660,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 4,
    "learning_rate": 1e-4,
}

_ALL = (
    Task(
        "demo",
        "Word problems with sums and differences, after a short cold start; right is the number.",
        "The problems are generated, and the model is the embedded one of 0.9M parameters.",
        recipe="gsm8k_tiny.yaml",
    ),
    Task(
        "calculations",
        "A sum, difference, product or quotient of two numbers up to 100; right is the number.",
        "They are the calculations in the notes of GSM8K's worked solutions (train split).",
        "last_number",
        _calculations,
        {"max_completion_length": 16},
    ),
    Task(
        "smallest_number",
        "The smallest number of a text with at least two; right is the number.",
        "The texts are SVAMP's word problems.",
        "last_number",
        _smallest_numbers,
        {"max_completion_length": 12},
    ),
    Task(
        "last_argument",
        "The last argument of a Python function with at least two; right is its name.",
        "The functions are those of MBPP's solutions, by their first line.",
        "last_word",
        _last_arguments,
        {"max_completion_length": 14, "max_steps": 24},
    ),
    Task(
        "gsm8k_short",
        "GSM8K's problems of one or two calculations, after a worked one; right is the last "
        "number.",
        "The problems are GSM8K's, held out are 200 of its test split.",
        "last_number",
        _gsm8k("train", *_SHORT_EXAMPLE, calculations=_SHORT),
        {"max_completion_length": 48},
        _gsm8k("test", *_SHORT_EXAMPLE, calculations=_SHORT, rows=HELD_OUT),
    ),
    Task(
        "gsm8k",
        "GSM8K itself, after one worked problem; right is the last number.",
        "The problems are GSM8K's, held out is its test split, and a GPU trains.",
        "last_number",
        _gsm8k("train", *_EXAMPLE),
        _ON_A_GPU | {"max_completion_length": 128, "num_generations": 16, "temperature": 0.7},
        _gsm8k("test", *_EXAMPLE),
    ),
    Task(
        "gsm8k_taught",
        "GSM8K itself, by a model that was taught its solutions first (benchmarks/supervised.py, "
        "as DeepSeekMath-Instruct was, arXiv 2402.03300 section 3); right is the last number.",
        "The problems are GSM8K's, held out is its test split, and a GPU trains.",
        "last_number",
        _gsm8k("train"),
        _ON_A_GPU | {"max_completion_length": 160},
        _gsm8k("test"),
    ),
)
TASKS = {task.name: task for task in _ALL}
