"""`grpo-hf init`: what it makes of data, and that what it writes works."""

import doctest
import importlib.util
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from grpo_hf.cli import main
from grpo_hf.errors import DataError
from grpo_hf.runs import preflight
from grpo_hf.runs.recipe import read_recipe
from grpo_hf.scoring.registry import load_reward
from grpo_hf.starting.data_facts import guess_gold, guess_prompt, kind_of_answers, look_at

ROWS = 24
ANSWERS = {
    "number": ("right_number", lambda n: 3 * n),
    "money": ("right_number", lambda n: f"${1000 + n:,}"),
    "choice": ("right_number", lambda n: 2 * n + 5),
    "label": ("right_label", lambda n: ("Positive", "Negative", "n/a (\\x)")[n % 3]),
    "short": ("right_words", lambda n: f'King\'s no. {n}""" \\'),
    "long": ("shared_words", lambda n: f"word{n} " * 12),
    "none": ("one_sentence", None),
}


@pytest.fixture
def data(tmp_path):
    """Return a function that writes rows, one for each number, and returns the file."""

    def write(make, name="rows.jsonl"):
        file = tmp_path / name
        lines = [json.dumps(make(n), ensure_ascii=False) for n in range(ROWS)]
        file.write_text("\n".join(lines), encoding="utf-8")
        return file

    return write


@pytest.fixture
def begun(tmp_path, tiny_checkpoint, capsys, monkeypatch):
    """Return a function that begins a task, and returns its folder and what was printed."""
    monkeypatch.chdir(tmp_path)

    def begin(file, *flags):
        folder = tmp_path / "mine"
        main(["init", "mine", "--data", str(file), "--model", str(tiny_checkpoint), *flags])
        return folder, capsys.readouterr().out

    return begin


def module_of(file: Path):
    spec = importlib.util.spec_from_file_location("written_reward", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
@pytest.mark.parametrize("kind", ANSWERS)
def test_what_is_written_works(kind, data, begun):
    function, answer = ANSWERS[kind]
    asked = "Larger, {} or {}?" if kind == "choice" else "What about {}?"
    file = data(
        lambda n: (
            {"question": asked.format(n, 2 * n + 5)} | ({"answer": answer(n)} if answer else {})
        )
    )
    folder, printed = begun(file)
    assert sorted(path.name for path in folder.iterdir()) == [
        "recipe.schema.json",
        "recipe.yaml",
        "reward.py",
    ]
    assert "reward.py hold" in printed and "grpo-hf train mine/recipe.yaml" in printed
    tried = doctest.testmod(module_of(folder / "reward.py"))
    assert tried.attempted >= 2 and tried.failed == 0
    written = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    schema = json.loads((folder / "recipe.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(written, schema)
    recipe = read_recipe(["--config", str(folder / "recipe.yaml"), "--use_cpu"])
    assert recipe.task.rewards == [f"./reward.py:{function}"]
    task = preflight.check_task(recipe)
    assert len(task.held_out.rows) == ROWS // 5
    preflight.check_model(recipe, task)
    if answer is not None:
        reward = getattr(module_of(folder / "reward.py"), function)
        gold = [answer(n) for n in range(ROWS)]
        others = gold[1:] + gold[:1]
        assert reward(list(map(str, gold)), answer=gold) == [1.0] * ROWS
        assert all(paid < 1 for paid in reward(list(map(str, others)), answer=gold))
        assert "own and another" not in printed.partition("note:")[2]


def test_words_that_name_several_answers_are_not_paid(data, begun):
    """What stands in the prompt could be copied from it, with the right answer among it."""
    cities = ("Cairo", "New York", "Lisbon", "Oslo")
    asked = "Ann went from {} to {}. To which city did she go?"
    names = [(cities[n % 4] + str(n), cities[(n + 1) % 4] + str(n)) for n in range(ROWS)]
    folder, printed = begun(data(lambda n: {"ask": asked.format(*names[n]), "city": names[n][1]}))
    reward = module_of(folder / "reward.py").right_words
    paid = {
        "Lisbon": 1.0,
        "She went to Lisbon.": 1.0,
        "Lisbon or Cairo": 0.0,
        "Ann went from Cairo to Lisbon, or to Oslo": 0.0,
        "": 0.0,
    }
    assert reward(list(paid), city=["Lisbon"] * len(paid)) == list(paid.values())
    assert "pays for:" not in printed


@pytest.mark.parametrize("answers", [("C#", "vitamin C", "B"), ("a-1", "b-1", "c-2")])
def test_the_examples_hold_whatever_words_are_made_of(answers, data, begun):
    names = [answers[n % 3] if n < 3 else f"{answers[n % 3]} {n}" for n in range(ROWS)]
    folder, _ = begun(data(lambda n: {"ask": f"What about {n}?", "answer": names[n]}))
    written = module_of(folder / "reward.py")
    assert doctest.testmod(written).failed == 0
    assert len(set(written.final_answers(["a-1", "b-1"], "c-2"))) == 2


def test_the_wrong_example_of_labels_is_a_label(data, begun):
    labels = ("valid", "invalid")
    folder, _ = begun(data(lambda n: {"ask": f"What about {n}?", "answer": labels[n % 2]}))
    assert '"valid1"' not in (folder / "reward.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "texts", "votes"),
    [
        ("number", ["It is $1,004.50.", "3 and 1004.5", "none"], ["1004.5", "1004.5", None]),
        ("choice", ["It is 9.", "9.0, so 9", "5 or 9"], ["9", "9", None]),
        ("label", ["NEGATIVE.", "negative", "positive or negative"], ["negative"] * 2 + [None]),
        ("short", ["New  York.", "new york", "..."], ["new york", "new york", None]),
    ],
)
def test_equal_answers_vote_together(kind, texts, votes, data, begun):
    """maj@k of one's own task: the written reward says which answers are the same."""
    _, answer = ANSWERS[kind]
    asked = "Larger, {} or {}?" if kind == "choice" else "What about {}?"
    folder, _ = begun(data(lambda n: {"question": asked.format(n, 2 * n + 5), "answer": answer(n)}))
    (spec,) = yaml.safe_load((folder / "recipe.yaml").read_text())["rewards"]
    votes_of = load_reward(spec, relative_to=folder).settings.answers
    # Answers of a few words are as long as the right one of the problem.
    right = ["New York"] if kind == "short" else []
    assert votes_of(texts, *right) == votes


# What stands in a file where the right answer is not known.
NO_ANSWER = {3: "", 5: " \t", 7: None}


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in ANSWERS if kind != "none"])
def test_rows_without_a_right_answer_are_named_whatever_stands_there(kind, data, begun):
    function, answer = ANSWERS[kind]
    asked = "Larger, {} or {}?" if kind == "choice" else "What about {}?"

    def make(n):
        prompt = asked.format(n, 2 * n + 5)
        return {"question": prompt, "answer": NO_ANSWER[n] if n in NO_ANSWER else answer(n)}

    folder, printed = begun(data(make))
    # Its row of the table: kind and how many rows are filled. A note may wrap before "answer is".
    (filled,) = re.findall(r"^answer +\w+ +(\d+) ", printed, re.MULTILINE)
    assert int(filled) == ROWS - len(NO_ANSWER)
    assert "reward.py hold" in printed
    recipe = read_recipe(["--config", str(folder / "recipe.yaml"), "--use_cpu"])
    assert recipe.task.rewards == [f"./reward.py:{function}"]
    task = preflight.check_task(recipe)
    prompts = preflight.check_model(recipe, task)
    assert len(prompts.train) + len(prompts.held_out) == ROWS - len(NO_ANSWER)
    for said in (printed, "\n".join(prompts.notes)):
        for n in NO_ANSWER:
            assert f"rows.jsonl:{n + 1}: answer is empty" in " ".join(said.split())
    reward = getattr(module_of(folder / "reward.py"), function)
    for nothing in NO_ANSWER.values():
        assert reward(["", "so", str(answer(1))], answer=[nothing] * 3) == [None] * 3


def test_a_column_that_is_empty_in_every_row_is_called_so(data, begun, capsys):
    file = data(lambda n: {"question": f"{n}?", "answer": n, "hint": ""})
    with pytest.raises(SystemExit):
        begun(file, "--gold", "hint")
    assert "the column 'hint' is empty in every row" in capsys.readouterr().err


class TestChoices:
    """Prompts that hold their right answer beside others."""

    def written(self, data, begun, make):
        folder, printed = begun(data(make), "--gold", "larger")
        reward = module_of(folder / "reward.py").right_number
        return reward, (folder / "recipe.yaml").read_text(encoding="utf-8"), printed

    def test_an_answer_that_names_several_is_not_paid(self, data, begun):
        reward, _, printed = self.written(
            data, begun, lambda n: {"ask": f"Larger, {n} or {n + 7000}?", "larger": n + 7000}
        )
        paid = {
            "7001": 1.0,
            "7,001 is the larger number.": 1.0,
            "It is 7001, as 7001.0 is larger.": 1.0,
            "1 is larger than 7001.": 0.0,
            "7001 is larger than 1.": 0.0,
            "1": 0.0,
            "": 0.0,
        }
        assert reward(list(paid), larger=[7001] * len(paid)) == list(paid.values())
        assert "prompt copied" not in printed.partition("note:")[2]

    def test_messages_are_read(self, data, begun):
        def make(n):
            said = [{"role": "user", "content": f"Larger, {n} or {n + 7000}?"}]
            return {"messages": said, "larger": n + 7000}

        reward, _, _ = self.written(data, begun, make)
        assert reward(["1 is larger than 7001."], larger=[7001]) == [0.0]

    @pytest.mark.parametrize(
        "make",
        [
            # Copies, and sums of which some terms are 0.
            lambda n: {"ask": f"Say {n}.", "larger": n},
            lambda n: {"ask": f"{n} + {n % 2} =", "larger": n + n % 2},
        ],
    )
    def test_other_numbers_are_the_last_of_an_answer(self, data, begun, make):
        reward, _, _ = self.written(data, begun, make)
        assert reward(["3 and 4 make 7"], larger=[7]) == [1.0]


def test_the_length_of_an_answer_says_how_it_was_chosen(data, begun):
    folder, _ = begun(data(lambda n: {"question": f"{n}?", "answer": 1000 + n}))
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    assert (
        "# Tokens of an answer: 32 for a sentence around the answer and 2 for the longest" in text
    )
    assert "max_completion_length: 34" in text


def test_a_label_has_little_room(data, begun):
    """A small model goes on talking, and names other labels by chance."""
    labels = ("billing", "delivery", "technical")
    folder, _ = begun(data(lambda n: {"question": f"{n}?", "answer": labels[n % 3]}))
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "# Tokens of an answer: 12 for a few words around the answer and 6 for" in text
    assert "max_completion_length: 18" in text


def test_the_values_in_its_comments_are_the_defaults(data, begun):
    """What a line changes is seen only where its value is the one that holds without it."""
    folder, _ = begun(data(lambda n: {"question": f"{n}?", "answer": n}))
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    _, comments = text.split("with the values that it has otherwise:")
    shown = yaml.safe_load(comments.replace("\n# ", "\n"))
    assert len(shown) >= 7
    recipe = read_recipe(["--config", str(folder / "recipe.yaml"), "--use_cpu"])
    for name, value in shown.items():
        holder = recipe.model if hasattr(recipe.model, name) else recipe.training
        assert getattr(holder, name) == value, name
    # It has a checkpoint long before its end.
    assert recipe.training.save_steps * 2 <= recipe.training.max_steps


class TestColumns:
    def test_of_any_name(self, data, begun):
        file = data(lambda n: {"Text of it": f"Say {n}, please", "class": n, "id": f"x{n}"})
        folder, printed = begun(file)
        assert "prompt: Text of it; right answer: class" in printed
        written = yaml.safe_load((folder / "recipe.yaml").read_text())
        # `class` is no name of a parameter.
        assert written["columns"] == ["answer=class"]
        assert written["prompt_column"] == "Text of it"
        assert "1.00" in printed

    def test_that_are_given(self, data, begun):
        file = data(lambda n: {"question": "?", "q": f"Say {n}", "answer": "no", "verdict": n})
        folder, _ = begun(file, "--prompt", "q", "--gold", "verdict")
        written = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert written["prompt_column"] == "q" and "columns" not in written
        assert "def right_number(completions, verdict," in (folder / "reward.py").read_text()

    def test_that_are_wrong_are_answered_with_the_closest(self, data, begun, capsys):
        file = data(lambda n: {"question": f"{n}?", "answer": n})
        with pytest.raises(SystemExit):
            begun(file, "--gold", "anser")
        assert "Did you mean 'answer'" in capsys.readouterr().err

    def test_worked_answers_get_the_library_s_reward(self, data, begun):
        file = data(lambda n: {"question": f"{n} and 1?", "target": f"Add them.\n#### {n + 1}"})
        folder, _ = begun(file)
        written = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert (written["rewards"], written["columns"]) == (["gsm8k"], ["answer=target"])
        assert "####" in written["instruction"] and not (folder / "reward.py").exists()

    def test_messages_and_a_test_split(self, data, begun, tmp_path):
        (tmp_path / "both").mkdir()

        def row(n):
            return {"messages": [{"role": "user", "content": f"{n}?"}], "label": n}

        data(row, "both/train.jsonl")
        data(row, "both/test.jsonl")
        folder, _ = begun(tmp_path / "both")
        assert "eval_rows" not in yaml.safe_load((folder / "recipe.yaml").read_text())

    def test_guesses(self, data):
        facts = look_at(str(data(lambda n: {"id": n, "Body": f"Tell me of {n}", "Label": "a"})))
        assert guess_prompt(facts) == "Body"
        assert guess_gold(facts, "Body") == "Label"
        three = look_at(str(data(lambda n: {"prompt": f"{n}", "one": n, "two": n})))
        assert guess_gold(three, "prompt") is None
        named = look_at(str(data(lambda n: {"id": n, "prompt": f"{n}", "expected": "a"})))
        assert guess_gold(named, "prompt") == "expected"

    @pytest.mark.parametrize(
        "more, gold",
        [
            ({"id": "{n}", "last_name": "Hall {m}"}, "last_name"),
            ({"orderId": "A-{n}", "source_url": "x.org/{m}", "city": "town {m}"}, "city"),
            # Rows counted under another name, and a column that says the same of each row.
            ({"at": "{n}", "task": "name it", "city": "town {m}"}, "city"),
            # Any of several may be it.
            ({"id": "{n}", "first_name": "Ann {m}", "last_name": "Hall {m}"}, None),
            ({"id": "{n}", "price": "{m}.5", "city": "town {m}"}, None),
            # Beside a text there may be an answer to it, or its title.
            ({"text": "It was once so that, in town {m}, all went", "town": "town {m}"}, None),
            # It is no short text.
            ({"id": "{n}", "told": "It was once so that, in town {m}, all went"}, None),
            ({"id": "{n}", "price": "{m}.5"}, None),
            ({"id": "{n}", "code_of_it": "x{n}"}, None),
            # Drawn by chance, so that two are the same; and a date may be that of the row.
            ({"ticket": "TK-{drawn}", "iso_date": "2014-07-{m}"}, None),
            # Its name says that it is something else.
            ({"id": "{n}", "category": "kind {m}"}, None),
            ({"id": "{n}", "problem_type": "kind {m}"}, None),
            ({"id": "{n}", "lang": "l{m}"}, None),
            # The only other column may be a kind that is asked for, but not the number of a row.
            ({"category": "kind {m}"}, "category"),
            ({"answerKey": "{m}"}, "answerKey"),
            ({"id": "{m}"}, None),
            ({"rowId": "x{n}"}, None),
            ({"n": "{n}"}, None),
        ],
    )
    def test_the_only_column_of_short_texts_is_the_answer(self, data, more, gold):
        def row(n):
            of_row = {
                name: value.format(n=n, m=n % 5, drawn=max(n, 1)) for name, value in more.items()
            }
            return {"sentence": f"Mr. no. {n} of so many went home. Who?"} | of_row

        assert guess_gold(look_at(str(data(row))), "sentence") == gold

    @pytest.mark.parametrize(
        "values, kind",
        [
            ([1, 2.5], "number"),
            (["1,000", " 7 %", "€3"], "number"),
            ([True, False], "label"),
            (["yes", "no", "yes"], "label"),
            (["same", "same"], "short"),
            (["So\n#### 3", "#### 4"], "gsm8k"),
            (["$\\boxed{3}$"], "math"),
            (["a b c d e f g h i"], "long"),
        ],
    )
    def test_kinds_of_answers(self, values, kind):
        assert kind_of_answers(values) == kind


class TestNothingIsWrittenOver:
    @pytest.mark.parametrize("name", ["recipe.yaml", "reward.py", "recipe.schema.json"])
    def test_an_existing_file_is_left_alone(self, data, begun, tmp_path, capsys, name):
        file = data(lambda n: {"question": f"{n}?", "answer": n})
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / name).write_text("kept")
        with pytest.raises(SystemExit) as left:
            begun(file)
        assert left.value.code == 2
        assert f"holds {name} already" in capsys.readouterr().err
        assert (tmp_path / "mine" / name).read_text() == "kept"
        assert len(list((tmp_path / "mine").iterdir())) == 1


class TestAsking:
    def test_without_a_terminal_the_data_has_to_be_named(self, capsys, tmp_path):
        with pytest.raises(SystemExit):
            main(["init", str(tmp_path / "new")])
        assert "give --data" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    def test_without_a_right_answer_the_flag_is_named(self, data, begun):
        file = data(lambda n: {"ask": f"Which is larger, {n} or 3?", "first": n, "larger": n + 3})
        _, printed = begun(file)
        printed = " ".join(printed.split())
        assert "prompt: ask; right answer: none, so the reward looks at the form alone" in printed
        assert "--gold COLUMN (first, larger)" in printed

    @pytest.mark.long
    @pytest.mark.parametrize("folder, second", [("mine", "mine-2"), (".", "again-2")])
    def test_without_a_right_answer_the_second_try_is_a_command(
        self, data, tmp_path, tiny_checkpoint, capsys, monkeypatch, folder, second
    ):
        def row(n):
            return {"id": n, "ask": f"Who is {n}?", "name": f"Ann {n}", "age": 20 + n % 7}

        file = data(row, "the rows.jsonl")
        monkeypatch.chdir(tmp_path)
        main(["init", folder, "--data", str(file), "--model", str(tiny_checkpoint)])
        printed = capsys.readouterr().out
        # On a line of its own, to be copied.
        (command,) = (line for line in printed.splitlines() if "grpo-hf init" in line)
        words = shlex.split(command)
        assert words[:2] == ["grpo-hf", "init"] and words[-2:] == ["--gold", "name"]
        main(words[1:])
        reward = load_reward(f"./{second}/reward.py:right_words", relative_to=tmp_path)
        assert "name" in reward.columns

    def test_of_several_possible_answers_a_second_try_names_none(self, data, begun):
        """A copied command would have trained on the first: on numbers of tickets, in one case."""
        file = data(lambda n: {"ask": f"Who is {n}?", "first": f"Ann {n}", "last": f"Wu {n}"})
        _, printed = begun(file)
        (command,) = (line for line in printed.splitlines() if "grpo-hf init" in line)
        assert command.endswith("--gold COLUMN")

    def test_a_right_answer_that_is_refused_in_a_terminal_is_not_asked_for_again(
        self, data, tmp_path, tiny_checkpoint, monkeypatch, capsys
    ):
        file = data(lambda n: {"ask": f"Who is {n}?", "id": n, "answer": f"Ann Wu {n}"})
        answers = iter([None, "-", None])
        monkeypatch.setattr("rich.prompt.Prompt.ask", lambda _, default: next(answers) or default)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.chdir(tmp_path)
        main(["init", "mine", "--data", str(file), "--model", str(tiny_checkpoint)])
        printed = capsys.readouterr().out
        assert "right answer: none, so the reward looks at the form alone" in printed
        assert "No column is called" not in printed and "grpo-hf init" not in printed

    def test_where_nothing_can_be_the_answer_no_command_is_made_up(self, data, begun):
        file = data(lambda n: {"ask": f"Who is {n}?", "id": n, "source": f"book {n % 3}"})
        _, printed = begun(file)
        assert "right answer: none" in printed and "grpo-hf init" not in printed

    def test_a_right_answer_that_is_guessed_is_said_with_the_flag(self, data, begun):
        file = data(lambda n: {"ask": f"Which is larger, {n} or 3?", "first": n, "target": n + 3})
        _, printed = begun(file)
        assert "right answer: target (--gold COLUMN for another: first; - for none)" in printed

    def test_a_data_file_that_is_not_there_is_said_at_once(self, data, tmp_path, capsys):
        file = data(lambda n: {"question": f"{n}?", "answer": n})
        with pytest.raises(SystemExit):
            main(["init", str(tmp_path / "mine"), "--data", f"{file.with_suffix('')}s.jsonl"])
        assert f"no such data file. Did you mean '{file}'?" in capsys.readouterr().err

    def test_a_model_that_is_not_there_is_said_at_once(self, data, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "models" / "smollm2").mkdir(parents=True)
        monkeypatch.setattr("grpo_hf.models.places.is_on_hub", lambda name: None)
        with pytest.raises(SystemExit):
            main(["init", "mine", "--data", "nowhere.jsonl", "--model", "models/smollm"])
        said = capsys.readouterr().err
        assert "models/smollm: no such model folder here. Did you mean 'models/smollm2'?" in said
        with pytest.raises(SystemExit):
            main(["init", "mine", "--data", "nowhere.jsonl", "--model", "model/smollm2"])
        said = capsys.readouterr().err
        assert "model/smollm2: no such model folder here. Did you mean 'models/smollm2'?" in said
        file = data(lambda n: {"question": f"{n}?", "answer": n})
        main(["init", "mine", "--data", str(file), "--model", "modls"])
        said = capsys.readouterr().out
        assert "note: modls is no folder here, so `grpo-hf train` will fetch it from the" in said
        assert "Hub. Did you mean 'models'?" in said

    @pytest.mark.parametrize("count", [2, 3, 4, 5])
    def test_too_few_rows_for_a_training_are_said_as_it_says_them(self, count, tmp_path, begun):
        file = tmp_path / "few.jsonl"
        rows = [json.dumps({"question": f"{n} + {n}?", "answer": 2 * n}) for n in range(count)]
        file.write_text("\n".join(rows))
        # By its name alone, since a terminal breaks long lines.
        folder, printed = begun(file.name)
        recipe = read_recipe(["--config", str(folder / "recipe.yaml"), "--use_cpu"])
        refusal = ""
        try:
            preflight.check_model(recipe, preflight.check_task(recipe))
        except DataError as error:
            refusal = str(error)
        # One of five is held out, and a step takes four.
        assert bool(refusal) == (count < 5)
        said = " ".join(printed.split())
        assert ("note: `grpo-hf train` would refuse this data: " in said) == bool(refusal)
        assert refusal in said
        if refusal:
            assert f"few.jsonl has {count - 1} prompt" in refusal
            assert "Give at least 4 rows to train on, or " in refusal

    @pytest.mark.long
    def test_in_a_terminal_it_asks_and_offers_what_it_sees(
        self, data, tiny_checkpoint, tmp_path, monkeypatch, capsys
    ):
        file = data(lambda n: {"question": f"{n}?", "hint": "x", "target": n})
        asked = []
        answers = iter([str(file), None, "hint", str(tiny_checkpoint), None])

        def ask(question, default=None):
            asked.append((question, default))
            return next(answers) or default

        monkeypatch.setattr("rich.prompt.Prompt.ask", ask)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.chdir(tmp_path)
        main(["init", "mine"])
        assert [default for _, default in asked][:3] == [None, "question", "target"]
        assert "right answer: hint" in capsys.readouterr().out
        assert asked[-1][1] == "new" and (tmp_path / "mine" / "reward.py").is_file()
        (tmp_path / "my.py").write_text("def same(completions, **_):\n    return [1.0]\n")
        answers = iter([str(file), None, None, str(tiny_checkpoint), "./my.py:same"])
        main(["init", "other"])
        written = yaml.safe_load((tmp_path / "other" / "recipe.yaml").read_text())
        assert written["rewards"] == ["../my.py:same"]


class TestWrongAnswers:
    """What is typed in a terminal and wrong is asked for again."""

    @pytest.fixture
    def typing(self, monkeypatch, tmp_path):
        """Return a function that sets what is typed, and returns what was asked."""
        monkeypatch.chdir(tmp_path)

        def types(*answers):
            asked, left = [], iter(answers)
            monkeypatch.setattr("sys.stdin.isatty", lambda: True)
            monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

            def ask(question, default=None):
                asked.append((question.split(" (")[0].partition(":")[0], default))
                return next(left) or default

            monkeypatch.setattr("rich.prompt.Prompt.ask", ask)
            return asked

        return types

    def test_are_answered_with_their_error_and_the_same_question(
        self, data, tiny_checkpoint, tmp_path, typing, capsys
    ):
        file = data(lambda n: {"question": f"{n}?", "hint": "x", "target": n})
        (tmp_path / "my.py").write_text("def same(completions, **_):\n    return [1.0]\n")
        right = [str(file), "question", "hint", str(tiny_checkpoint), "./my.py:same"]
        wrong = ["row.jsonl", "qestion", "hnit", "./tiny", "./my.py:some"]
        asked = typing(*[answer for pair in zip(wrong, right, strict=True) for answer in pair])
        main(["init", "mine"])
        questions = [question for question, _ in asked]
        assert questions[::2] == questions[1::2] and len(set(questions)) == 5
        said = capsys.readouterr().out
        for error in (
            "error: row.jsonl: no such data file. Did you mean 'rows.jsonl'?",
            "has no column 'qestion'. Did you mean 'question'?",
            "has no column 'hnit'. Did you mean 'hint'?",
            "error: ./tiny: no such model folder.",
            "'some'",
        ):
            assert error in said
        written = yaml.safe_load((tmp_path / "mine" / "recipe.yaml").read_text())
        assert written["rewards"] == ["../my.py:same"]
        assert written["model_name_or_path"] == str(tiny_checkpoint)

    def test_a_prompt_that_cannot_be_guessed_is_asked_for(self, data, tiny_checkpoint, typing):
        asked = typing("response", None, None)
        file = data(lambda n: {"response": f"Say {n}", "target": n})
        main(["init", "mine", "--data", str(file), "--model", str(tiny_checkpoint)])
        assert asked[0] == ("Column of the prompt", None)

    @pytest.mark.parametrize(
        "flags", [["--prompt", "xyz"], ["--gold", "xyz"], ["--reward", "./no.py:one"]]
    )
    def test_of_a_flag_end_it_before_anything_is_written(
        self, flags, data, tiny_checkpoint, tmp_path, typing, capsys
    ):
        typing(None, None, None)
        file = data(lambda n: {"question": f"{n}?", "target": n})
        with pytest.raises(SystemExit) as left:
            main(["init", "mine", "--data", str(file), "--model", str(tiny_checkpoint), *flags])
        assert left.value.code == 2 and "error: " in capsys.readouterr().err
        assert not (tmp_path / "mine").exists()


def test_the_right_answer_is_not_guessed_to_be_the_prompt(data, begun):
    """An id differs more from row to row than a message does."""
    file = data(lambda n: {"message": f"I ordered it {n // 2} days ago", "order_id": f"A-{n}"})
    _, printed = begun(file, "--gold", "order_id")
    assert "prompt: message; right answer: order_id" in printed


def test_the_end_of_the_input_stops_the_questions(data, tmp_path, monkeypatch, capsys):
    def ask(question, default=None):
        raise EOFError

    monkeypatch.setattr("rich.prompt.Prompt.ask", ask)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "mine"), "--data", str(data(lambda n: {"prompt": f"{n}"}))])
    said = capsys.readouterr().err
    assert "stopped." in said and "Traceback" not in said
    assert not (tmp_path / "mine").exists()


def test_votes_on_short_answers_do_not_see_what_stands_before_them(data, begun):
    golds = ["lamp", "washing machine"] * 10
    folder, _ = begun(data(lambda n: {"question": f"{n}?", "answer": f"{golds[n % 20]} {n}"}))
    names = {}
    exec((folder / "reward.py").read_text(), names)
    of = names["final_answers"]
    assert of(["The lamp.", "a lamp", "lamp", ""], "lamp") == ["lamp", "lamp", "lamp", None]
    two = ["My washing machine", "washing machine", "machine"]
    assert of(two, "Washing machine") == ["washing machine", "washing machine", "machine"]


@pytest.mark.parametrize(
    ("column", "answer", "instruction"),
    [
        ("order_id", lambda n: f"A-{n}", "Answer with the order id alone."),
        ("Capital City", lambda n: f"Town {n}", "Answer with the capital city alone."),
        ("expectedSKU", lambda n: f"A-{n}", "Answer with the SKU alone."),
        ("total", lambda n: 3 * n, "Answer with the total alone, as a number."),
        ("Which one is the right one?", lambda n: f"A-{n}", None),
        *[(name, lambda n: f"A-{n}", None) for name in ("answer", "target", "label", "gold")],
        *[(name, lambda n: f"A-{n}", None) for name in ("output", "expected", "completion")],
        *[(name, lambda n: f"A-{n}", None) for name in ("response", "text", "y", "answer_2")],
        ("gold_answer", lambda n: 3 * n, "Answer with the number alone."),
        *[(name, lambda n: f"A-{n}", None) for name in ("y_true", "ans", "target_str", "id")],
        *[(name, lambda n: f"A-{n}", None) for name in ("answer_start", "label_idx", "key")],
        ("start_date", lambda n: f"A-{n}", "Answer with the start date alone."),
        ("answer_key_phrase", lambda n: f"A-{n}", "Answer with the key phrase alone."),
        ("y_position", lambda n: 3 * n, "Answer with the y position alone, as a number."),
        ("final_num", lambda n: 3 * n, "Answer with the number alone."),
    ],
)
def test_the_instruction_calls_the_answer_what_the_data_calls_it(
    column, answer, instruction, data, begun
):
    file = data(lambda n: {"question": f"What about {n}?", column: answer(n)})
    folder, said = begun(file, "--gold", column)
    written = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert written["instruction"] == (instruction or "Answer with the right word or words alone.")
    # It is a guess all the same, and whoever does not read it loses the first minutes.
    first = said.partition("next:\n")[2].splitlines()[0]
    assert first.split("#")[0].strip() == "read `instruction` in mine/recipe.yaml"


def test_without_an_instruction_there_is_none_to_read(data, begun):
    file = data(lambda n: {"question": f"What about {n}?", "answer": f"word{n} " * 12})
    folder, said = begun(file)
    assert "instruction:" not in (folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "next:\n  python -m doctest" in said


def test_a_reward_that_is_there_is_named_from_the_recipe(data, begun, tmp_path):
    (tmp_path / "my.py").write_text(
        "def same(completions, gold, **_):\n"
        "    return [float(a == str(b)) for a, b in zip(completions, gold)]\n"
    )
    file = data(lambda n: {"question": f"{n}?", "gold": n})
    folder, said = begun(file, "--reward", "./my.py:same")
    text = (folder / "recipe.yaml").read_text()
    written = yaml.safe_load(text)
    assert written["rewards"] == ["../my.py:same"]
    assert not (folder / "reward.py").exists()
    # What its reward pays for is its author's to say.
    assert "instruction" not in written and '# instruction: "Answer with the number' in text
    assert "the recipe has no instruction" in said and "grpo-hf rewards check mine" in said
