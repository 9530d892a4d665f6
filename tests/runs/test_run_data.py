"""What a recipe makes of its data before a model loads: the form of prompts, notes, refusals."""

import json

import pytest
import yaml
from support.chats import SHAPES, USER

from grpo_hf.data.prompts import prompt_token_ids
from grpo_hf.errors import ConfigError, DataError, RewardSpecError
from grpo_hf.models import loading
from grpo_hf.runs import preflight
from grpo_hf.runs.recipe import read_recipe

BEGINNING = SHAPES["beginning"]
RENDERED = "<|user|>2+3?<|assistant|>Let me think.\n<think>"


@pytest.fixture
def recipe(tmp_path, tiny_checkpoint):
    """A recipe on rows that are given, with settings that are all right but for those given."""
    reward = "def same(completions, **columns):\n    return [1.0 for _ in completions]\n"
    (tmp_path / "mine.py").write_text(reward)

    def make(rows, **settings):
        lines = [json.dumps(row) for row in rows]
        (tmp_path / "train.jsonl").write_text("\n".join(lines))
        good = {
            "model_name_or_path": str(tiny_checkpoint),
            "dataset_path": str(tmp_path / "train.jsonl"),
            "rewards": ["./mine.py:same"],
            "output_dir": str(tmp_path / "run"),
            "max_completion_length": 16,
            "per_device_train_batch_size": 8,
            "eval_rows": 0,
            "use_cpu": True,
            "report_to": "none",
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(good | settings))
        return read_recipe(["--config", str(file)])

    return make


def checked(recipe):
    return preflight.check_model(recipe, preflight.check_task(recipe))


def repeated(prompt, count=4, **columns):
    return [{"prompt": prompt, "number": number, **columns} for number in range(count)]


class TestBeginnings:
    def test_are_continued_and_named(self, recipe):
        made = recipe(repeated(BEGINNING) + repeated([USER]))
        prompts = checked(made)
        assert prompts.train["prompt"][:] == [BEGINNING] * 4 + [[USER]] * 4
        assert len(prompts.notes) == 1
        assert prompts.notes[0].startswith("4 of 8 prompts end with the beginning of an answer")
        options = made.training.chat_template_kwargs
        assert options == {"continue_final_message": True}
        ids = prompt_token_ids(prompts.train["prompt"], prompts.tokenizer, options)
        read = prompts.tokenizer.batch_decode(ids)
        assert read[0] == "<|user|>What is 2 + 3?<|assistant|>Let me think.\n<think>"
        assert read[7] == "<|user|>What is 2 + 3?<|assistant|>"

    def test_the_user_s_word_stays(self, recipe):
        options = {"continue_final_message": False, "x": 1}
        made = recipe(repeated(BEGINNING), chat_template_kwargs=options)
        assert checked(made).notes == []
        assert made.training.chat_template_kwargs == options

    def test_other_options_stay(self, recipe):
        made = recipe(repeated(BEGINNING), chat_template_kwargs={"x": 1})
        checked(made)
        assert made.training.chat_template_kwargs == {"x": 1, "continue_final_message": True}

    def test_that_the_template_changes(self, recipe, monkeypatch):
        """Templates of reasoning models leave out what was thought in earlier turns."""
        load = loading.load_tokenizer

        def changed(*arguments, **settings):
            loaded = load(*arguments, **settings)
            loaded.chat_template = (
                "{% for m in messages %}{{ m['content'].split('<think>')[0] }}{% endfor %}"
            )
            return loaded

        monkeypatch.setattr(loading, "load_tokenizer", changed)
        with pytest.raises(DataError, match=r"usable row 1 \(.*--rendered_prompts true"):
            checked(recipe([{"prompt": [USER]}, *repeated(BEGINNING)]))


class TestSupervisedData:
    MESSAGES = (USER, {"role": "assistant", "content": "5."})

    def test_the_answer_is_left_out_and_named(self, recipe):
        rows = [{"messages": [*self.MESSAGES], "answer": 5}] * 3 + [{"messages": [USER]}]
        prompts = checked(recipe(rows))
        assert prompts.train["prompt"][:] == [[USER]] * 4
        assert prompts.train["messages"][0] == [*self.MESSAGES]
        (note,) = prompts.notes
        assert note.startswith("3 of 4 prompts are `messages` that end with an answer")

    def test_a_column_of_another_name_is_a_prompt(self, recipe):
        rows = [{"chat": [*self.MESSAGES]}] * 4
        prompts = checked(recipe(rows, prompt_column="chat"))
        assert prompts.train["prompt"][:] == [[*self.MESSAGES]] * 4


class TestRenderedText:
    def test_is_recognised(self, recipe):
        prompts = checked(recipe(repeated(RENDERED)))
        assert prompts.train["prompt"][:] == [RENDERED] * 4
        (note,) = prompts.notes
        assert "taken as they are (--rendered_prompts false" in note

    def test_the_user_s_word_counts(self, recipe):
        prompts = checked(recipe(repeated(RENDERED), rendered_prompts=False))
        assert prompts.train["prompt"][0] == [{"role": "user", "content": RENDERED}]
        prompts = checked(recipe(repeated("2+3?"), rendered_prompts=True))
        assert prompts.train["prompt"][0] == "2+3?"
        assert prompts.notes == []

    def test_among_other_texts(self, recipe):
        prompts = checked(recipe(repeated(RENDERED, 1) + repeated("2+3?", 3)))
        assert prompts.train["prompt"][0] == [{"role": "user", "content": RENDERED}]
        (note,) = prompts.notes
        assert note.startswith("1 of 4 prompts hold tokens of the chat template")

    @pytest.mark.parametrize("name", ["system_prompt", "instruction"])
    @pytest.mark.parametrize("settings", [{}, {"rendered_prompts": True}], ids=["found", "said"])
    def test_takes_no_further_text(self, recipe, name, settings):
        with pytest.raises(ConfigError, match=f"{name} cannot be put into prompts"):
            checked(recipe(repeated(RENDERED), **{name: "Be brief."}, **settings))

    def test_held_out_rows_have_the_form_of_the_others(self, recipe, tmp_path):
        made = recipe(repeated(RENDERED), eval_rows=1)
        folder = tmp_path / "data"
        folder.mkdir()
        (tmp_path / "train.jsonl").rename(folder / "train.jsonl")
        (folder / "test.jsonl").write_text(json.dumps({"prompt": "2+3?"}))
        made.task.dataset_path = str(folder)
        assert checked(made).held_out["prompt"][:] == ["2+3?"]


def test_rewards_check_shows_prompts_of_the_same_form(recipe):
    for prompt, expected in ((RENDERED, RENDERED), (BEGINNING, BEGINNING), ("Hi", None)):
        _, rows, _ = preflight.sample_rows(recipe(repeated(prompt)), 2)
        assert rows[0]["prompt"] == (expected or [{"role": "user", "content": "Hi"}])


def test_the_embedded_model_has_a_chat_template(recipe):
    """Its rewards are tried on messages, as they are called later, and messages are no mistake."""
    made = recipe(repeated([USER]), model_name_or_path="embedded:tiny", cold_start_steps=1)
    made.task.rewards = ["./mine.py:of_messages"]
    (made.folder / "mine.py").write_text(
        "def of_messages(completions, **columns):\n"
        "    return [float(len(completion[0]['content'])) for completion in completions]\n"
    )
    preflight.check_embedded(made, preflight.check_task(made))


def test_prompts_too_long_for_the_embedded_model_are_found_before_its_cold_start(recipe):
    long = [{"role": "user", "content": "7 " * 300}]
    made = recipe(repeated(long), model_name_or_path="embedded:tiny", cold_start_steps=1)
    task = preflight.check_task(made)
    with pytest.raises(DataError, match="do not fit the model's context of 256 tokens"):
        preflight.check_embedded(made, task)


class TestHeldOut:
    def rows_of(self, recipe, count, **settings):
        made = recipe(repeated("What is 2 + 3?", count), **settings)
        # A flag that is not given, unlike the 0 of the other recipes here.
        if "eval_rows" not in settings:
            made.given.pop("eval_rows")
            made.task.eval_rows = 200
        data = preflight.check_task(made)
        return len(data.held_out.rows), len(data.train.rows), data.notes[0]

    @pytest.mark.parametrize(("count", "held_out"), [(10, 2), (150, 30), (300, 60), (1500, 200)])
    def test_at_most_a_fifth_where_nobody_says_how_many(self, recipe, count, held_out):
        *counts, note = self.rows_of(recipe, count)
        assert counts == [held_out, count - held_out]
        assert f"{held_out} of the {count} rows of" in note and "are held out, as it has" in note
        assert ("a fifth" in note) == (held_out < 200)

    def test_as_many_as_the_user_says(self, recipe):
        *counts, note = self.rows_of(recipe, 300, eval_rows=200)
        assert counts == [200, 100] and "a fifth" not in note
        with pytest.raises(DataError, match="300 rows, too few to hold out 300"):
            self.rows_of(recipe, 300, eval_rows=300)

    @pytest.mark.parametrize(("count", "said"), [(5, True), (29, True), (30, False)])
    def test_too_few_to_compare_on_are_said(self, recipe, count, said):
        made = recipe(repeated("What is 2 + 3?", count))
        made.given.pop("eval_rows")
        made.task.eval_rows = 200
        notes = preflight.check_task(made).notes
        few = [note for note in notes if "which says nothing" in note]
        assert bool(few) == said
        if count == 5:
            assert few[0].startswith("4 rows for training and 1 for the comparison")

    @pytest.mark.parametrize("left_out", ['{"prompt": ', '{"prompt": " ", "number": 9}'])
    def test_rows_are_counted_as_usable_whatever_is_wrong_with_the_others(
        self, recipe, tmp_path, left_out
    ):
        made = recipe(repeated("What is 2 + 3?", 30))
        lines = (tmp_path / "train.jsonl").read_text().splitlines()
        blank_ones = set()
        for place in range(31):
            broken = [*lines[:place], left_out, *lines[place:]]
            (tmp_path / "train.jsonl").write_text("\n".join(broken))
            made.task.eval_rows = 6
            task = preflight.check_task(made)
            usable = sum(bool(row["prompt"].strip()) for row in task.held_out.rows)
            assert f"{usable} of the 30 usable rows of" in task.notes[0]
            few = [note for note in task.notes if "which says nothing" in note]
            assert bool(few) == (usable < 6)
            if few:
                assert few[0].startswith("25 rows for training and 5 for the comparison")
            blank_ones.add(len(task.held_out.rows) - usable)
        # Of the row that is read, both were seen: that it is held out, and that it is not.
        assert blank_ones == ({0, 1} if "number" in left_out else {0})

    def test_every_count_of_a_file_has_the_same_total(self, recipe, tmp_path):
        made = recipe([*repeated("What is 2 + 3?", 20), {"prompt": None, "number": 20}])
        with (tmp_path / "train.jsonl").open("a") as file:
            file.write('\n{"prompt": ')
        made.given.pop("eval_rows")
        made.task.eval_rows = 200
        task = preflight.check_task(made)
        assert "4 of the 20 usable rows of" in task.notes[0]
        notes = checked(made).notes
        _, _, of_check = preflight.sample_rows(made, 4)
        for said in (task.train.describe_bad(), *notes, *of_check):
            if "left out" in said and "held out" not in said:
                assert " of 22 rows left out (" in said

    @pytest.mark.parametrize("count", [2, 3])
    def test_rows_that_are_left_out_are_no_different_prompts(self, recipe, tmp_path, count):
        (tmp_path / "mine.py").write_text(
            "def same(completions, answer, **columns):\n    return [1.0 for _ in completions]\n"
        )
        named = [{"prompt": f"What is {n} + 3?", "answer": str(n)} for n in range(30)]
        left_out = [{"prompt": " ", "answer": "1"}, {"prompt": "Who?", "answer": None}]
        made = recipe([*named, named[0], *(left_out * count)])
        made.task.eval_rows = 4
        assert "There are 30 different prompts; equal" in preflight.check_task(made).notes[0]
        unequal = recipe([*named, *(left_out * count)])
        unequal.task.eval_rows = 4
        assert "different prompts" not in preflight.check_task(unequal).notes[0]


def test_test_rows_that_are_trained_on_are_named(recipe, tmp_path):
    made = recipe(repeated("What is 2 + 3?") + repeated("Who?"), dataset_path=str(tmp_path))
    (tmp_path / "test.jsonl").write_text('{"prompt": "Who?"}\n{"prompt": "Why?"}\n')
    made.task.eval_rows = 2
    notes = preflight.check_task(made).notes
    assert notes[0].startswith("1 of 2 held-out prompts is also in the training data.")
    assert preflight.sample_rows(made, 1)[2][0] == notes[0]
    prompts = checked(made)
    assert len(prompts.digests()) == 2


def test_test_rows_that_are_left_out_are_not_among_those_trained_on(recipe, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def same(completions, answer, **columns):\n    return [1.0 for _ in completions]\n"
    )
    gaps = [{"prompt": " ", "answer": "1"}, {"prompt": "Who?", "answer": None}]
    made = recipe([*repeated("2 + 3 =", 6, answer="5"), *gaps], dataset_path=str(tmp_path))
    kept = {"prompt": "Who?", "answer": "me"}
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [*gaps, kept])))
    made.task.eval_rows = 3
    assert not any("training data" in note for note in preflight.check_task(made).notes)
    made = recipe([*repeated("2 + 3 =", 6, answer="5"), kept], dataset_path=str(tmp_path))
    made.task.eval_rows = 3
    assert preflight.check_task(made).notes[0].startswith("1 of 1 held-out prompts is also")


def test_rows_without_a_right_answer_are_named_before_the_training(recipe, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def same(completions, answer, **columns):\n    return [1.0 for _ in completions]\n"
    )
    made = recipe([*repeated("2 + 3 =", 7, answer="5"), {"prompt": "2 + 4 =", "answer": None}])
    _, samples, notes = preflight.sample_rows(made, 8)
    assert len(samples) == 7
    assert notes[0].endswith("train.jsonl: 1 of 8 rows left out (train.jsonl:8: answer is empty)")


class TestBlankAnswers:
    """Only a reward's author knows whether nothing is a right answer."""

    ROWS = (*repeated("2 + 3 =", 6, answer="5"), *repeated("Who?", 2, answer=" "))

    def notes(self, recipe, tmp_path, decorator, rows=ROWS):
        (tmp_path / "mine.py").write_text(
            f"from grpo_hf import reward_settings\n\n{decorator}\n"
            "def same(completions, answer, **columns):\n    return [1.0 for _ in completions]\n"
        )
        made = recipe([*rows])
        _, samples, notes = preflight.sample_rows(made, 9)
        prompts = checked(made)
        assert len(samples) == len(prompts.train)
        # What is said of the rows is said to who trains and to who checks.
        task = preflight.check_task(made)
        assert sorted(notes) == sorted([*task.notes, *prompts.notes])
        return len(samples), notes

    @pytest.mark.long
    def test_stay_and_are_named(self, recipe, tmp_path):
        count, (note,) = self.notes(recipe, tmp_path, "@reward_settings(batched=False)")
        assert count == 8
        assert note.startswith("2 of 8 rows of ") and "@reward_settings(gold='answer')" in note
        assert "have an empty answer: the first of them train.jsonl:7. They stay, as" in note
        _, (note,) = self.notes(recipe, tmp_path, "", self.ROWS[:7])
        assert "1 of 7 rows" in note and "has an empty answer: train.jsonl:7. It stays" in note

    def test_of_rows_that_are_left_out_are_not_named(self, recipe, tmp_path):
        left_out = [
            {"prompt": "", "answer": ""},
            {"prompt": [{"content": "no role"}], "answer": ""},
            {"prompt": [], "answer": " "},
        ]
        count, (note,) = self.notes(recipe, tmp_path, "", [*self.ROWS[:6], *left_out])
        assert count == 6
        assert "3 of 9 rows left out (train.jsonl:7: prompt is empty" in note

    def test_of_the_held_out_rows_alone_are_named(self, recipe, tmp_path):
        (tmp_path / "mine.py").write_text(
            "def same(completions, answer, **columns):\n    return [1.0 for _ in completions]\n"
        )
        made = recipe([*self.ROWS[:6]], dataset_path=str(tmp_path))
        made.task.eval_rows = 2
        rows = [{"prompt": "Why?", "answer": text} for text in ("5", "", "", "")]
        (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
        first, *_ = preflight.check_task(made).notes
        assert first.startswith("1 of 2 held-out rows of ")
        assert "has an empty answer: test.jsonl:2. It stays" in first
        (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [rows[0], *rows])))
        assert not any("empty answer" in note for note in preflight.check_task(made).notes)

    def test_are_left_out_where_the_reward_says_so(self, recipe, tmp_path):
        count, (note,) = self.notes(recipe, tmp_path, "@reward_settings(gold='answer')")
        assert count == 6
        assert "2 of 8 rows" in note and "train.jsonl:8: answer is empty" in note

    def test_are_no_matter_where_no_reward_needs_the_column(self, recipe, tmp_path):
        rows = [row | {"hint": "", "answer": "5"} for row in self.ROWS]
        assert self.notes(recipe, tmp_path, "", rows) == (8, [])


class TestOneRewardTwice:
    def names(self, recipe, tmp_path, *specs):
        source = (
            "def same(completions, *, limit=9, **columns):\n    return [1.0] * len(completions)"
        )
        (tmp_path / "mine.py").write_text(source)
        made = recipe(repeated("What is 2 + 3?", 8), rewards=list(specs))
        return [reward.name for reward in preflight.check_task(made).rewards]

    def test_has_names_by_the_options_that_differ(self, recipe, tmp_path):
        names = self.names(recipe, tmp_path, "./mine.py:same(limit=50)", "./mine.py:same")
        assert names == ["same-limit-50", "same-limit-9"]

    def test_with_the_same_options_is_refused(self, recipe, tmp_path):
        with pytest.raises(RewardSpecError, match="two rewards are called 'same'"):
            self.names(recipe, tmp_path, "./mine.py:same(limit=9)", "./mine.py:same")
