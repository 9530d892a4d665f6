"""Rows are read from files and the Hub; bad rows are named, and every refusal says what to do."""

import pyarrow
import pytest
from pyarrow import parquet
from support.data_files import ROWS, as_text, jsonl

from grpo_hf.data.prompts import (
    build_dataset,
    hold_out,
    prompt_builder,
    prompt_column,
    rename_columns,
)
from grpo_hf.data.readers import Split, read_split
from grpo_hf.errors import DataError, ModelError


class TestColumns:
    def split(self, *rows):
        return Split(list(rows), [], "train.jsonl")

    def test_renamed(self):
        renamed = rename_columns(self.split({"question": "q", "Answer": "4"}), {"answer": "Answer"})
        assert renamed.rows == [{"question": "q", "answer": "4"}]

    def test_a_rename_wins_over_a_column_of_that_name(self):
        for row in ({"solution": "right", "answer": "old"}, {"answer": "old", "solution": "right"}):
            assert rename_columns(self.split(row), {"answer": "solution"}).rows == [
                {"answer": "right"}
            ]
        ragged = rename_columns(
            self.split({"solution": "right"}, {"answer": "old"}), {"answer": "solution"}
        )
        assert ragged.rows == [{"answer": "right"}, {}]

    def test_swapped_and_doubled(self):
        swapped = rename_columns(self.split({"a": 1, "b": 2, "c": 3}), {"a": "b", "b": "a"})
        assert swapped.rows == [{"a": 2, "b": 1, "c": 3}]
        assert rename_columns(self.split({"a": 1}), {"b": "a", "c": "a"}).rows == [{"b": 1, "c": 1}]

    def test_unknown_column(self):
        with pytest.raises(
            DataError,
            match=r"no column 'anwser'. Did you mean 'answer'\? The columns are q, answer",
        ):
            rename_columns(self.split({"q": 1, "answer": 2}), {"gold": "anwser"})

    @pytest.mark.parametrize(
        "columns, found",
        [
            (["problem", "question", "messages", "prompt"], "prompt"),
            (["problem", "question", "messages"], "messages"),
            (["answer", "problem", "question"], "question"),
            (["answer", "problem"], "problem"),
        ],
    )
    def test_prompt_is_detected(self, columns, found):
        split = self.split(dict.fromkeys(columns, "x"))
        assert prompt_column(split) == found
        assert prompt_column(split, columns[0]) == columns[0]

    def test_prompt_column_that_is_not_there(self):
        split = self.split({"Question": "q", "answer": "a"})
        with pytest.raises(
            DataError,
            match=r"no column prompt, messages, question or problem.*are Question, answer",
        ):
            prompt_column(split)
        with pytest.raises(
            DataError,
            match=r"--prompt_column Qestion: there is no such column. Did you mean 'Questi",
        ):
            prompt_column(split, "Qestion")


class TestPrompts:
    MESSAGES = ({"role": "user", "content": "Hi"},)

    def test_text(self):
        assert prompt_builder(chat=False)("Hi") == "Hi\n"
        assert (
            prompt_builder(chat=False, system_prompt="S", instruction="I")("Hi") == "S\n\nHi\nI\n"
        )

    def test_text_with_a_chat_template(self):
        assert prompt_builder(chat=True)("Hi") == [{"role": "user", "content": "Hi"}]
        assert prompt_builder(chat=True, system_prompt="S", instruction="I")("Hi") == [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Hi\nI"},
        ]

    def test_messages(self):
        build = prompt_builder(chat=True, system_prompt="S", instruction="I")
        raw = [*self.MESSAGES, {"role": "assistant", "content": "the gold answer"}]
        assert build(raw) == [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Hi\nI"},
        ]
        assert raw[0] == {"role": "user", "content": "Hi"}  # the data is not changed
        own = [{"role": "system", "content": "own"}, *self.MESSAGES]
        assert build(own)[0] == {"role": "system", "content": "own"}

    def test_messages_need_a_chat_template(self):
        with pytest.raises(ModelError, match=r"no chat template.*--prompt_column"):
            build_dataset(Split([{"prompt": list(self.MESSAGES)}], [], "x"), "prompt", as_text)

    @pytest.mark.parametrize(
        "raw, reason",
        [
            (None, "prompt is empty"),
            ("", "prompt is empty"),
            (" \n", r"prompt is ' \\n'"),
            (7, "prompt is 7"),
            ([], "no message of a user"),
            ([{"role": "system", "content": "S"}], "no message of a user"),
            ([{"role": "assistant", "content": "A"}], "no message of a user"),
            ([{"role": "user"}], "a message lacks its role or text content"),
            ([{"content": "Hi"}], "a message lacks its role or text content"),
            (
                [{"role": "user", "content": [{"type": "image"}]}],
                "a message lacks its role or text content",
            ),
            (["Hi"], "a message lacks its role or text content"),
        ],
    )
    def test_unusable_prompts(self, raw, reason):
        with pytest.raises(ValueError, match=reason):
            prompt_builder(chat=True)(raw)


class TestBuildDataset:
    def test_rows_keep_their_columns(self, write):
        split = read_split(path=str(write("train.jsonl", jsonl(ROWS))))
        dataset, checked = build_dataset(split, "question", as_text, ["answer"])
        assert dataset.to_list() == [row | {"prompt": f"{row['question']}\n"} for row in ROWS]
        assert checked.bad == []

    def test_rows_set_aside_are_named_by_file_and_line(self, write):
        rows = [
            ROWS[0],
            {"question": "", "answer": "1"},
            {"answer": "1"},
            {"question": "q", "answer": None},
        ]
        split = read_split(path=str(write("train.jsonl", jsonl(rows) + "oops\n")))
        dataset, checked = build_dataset(split, "question", as_text, ["answer"])
        assert len(dataset) == 1
        assert [str(bad) for bad in checked.bad] == [
            "train.jsonl:5: not JSON (Expecting value)",
            "train.jsonl:2: prompt is empty; expected text or a list of messages",
            "train.jsonl:3: prompt is empty; expected text or a list of messages",
            "train.jsonl:4: answer is empty",
        ]
        assert checked.describe_bad().startswith("4 of 5 rows of ")

    def test_a_parquet_row_is_named_by_its_place_in_the_file(self, tmp_path):
        rows = [*ROWS, {"question": None, "answer": "1"}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
        _, rest = hold_out(read_split(path=str(tmp_path)), 0, seed=0)
        _, checked = build_dataset(rest, "question", as_text)
        assert [bad.place for bad in checked.bad] == ["train.parquet[2]"]

    def test_no_usable_row(self, write):
        split = read_split(path=str(write("train.jsonl", jsonl([{"question": ""}] * 7))))
        with pytest.raises(
            DataError,
            match=r"no usable row: 7 of 7 rows.*train.jsonl:1: prompt is empty.*and 2 more",
        ):
            build_dataset(split, "question", as_text)

    def test_mixed_types(self):
        rows = [{"prompt": "q", "answer": 1}, {"prompt": "q", "answer": "one"}]
        with pytest.raises(
            DataError,
            match=r"train.jsonl: a column mixes types.*answer|train.jsonl: a column mixes",
        ):
            build_dataset(Split(rows, [], "train.jsonl"), "prompt", as_text)


class TestHoldOut:
    SPLIT = Split([{"question": str(number)} for number in range(50)], [], "train.jsonl")

    def numbers(self, split):
        return [int(row["question"]) for row in split.rows]

    def test_disjoint_and_complete(self):
        held, rest = hold_out(self.SPLIT, 20, seed=0)
        assert len(held.rows) == 20
        assert sorted(self.numbers(held) + self.numbers(rest)) == list(range(50))
        assert held.source == "train.jsonl, held out"

    def test_random_and_the_same_for_the_same_seed(self):
        first = self.numbers(hold_out(self.SPLIT, 20, 1)[0])
        again = self.numbers(hold_out(self.SPLIT, 20, 1)[0])
        other = self.numbers(hold_out(self.SPLIT, 20, 2)[0])
        assert first == again != other
        assert first != list(range(20))
