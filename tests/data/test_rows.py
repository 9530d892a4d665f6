"""Columns are renamed, rows get prompts and keep their values; bad rows are named."""

import pyarrow
import pytest
from datasets import load_dataset
from pyarrow import parquet
from support.data_files import ROWS, as_text, jsonl

from grpo_hf.data.readers import Split, read_split
from grpo_hf.data.rows import build_dataset, hold_out, prompt_column, rename_columns
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
            "train.jsonl:5: not JSON from character 1 on: 'oops'",
            "train.jsonl:2: prompt is empty; expected text or a list of messages",
            "train.jsonl:3: prompt is empty; expected text or a list of messages",
            "train.jsonl:4: answer is empty",
        ]
        assert checked.describe_bad().endswith(f": {checked.counted_bad()}")
        assert checked.counted_bad().startswith("4 of 5 rows left out (")

    def test_blank_texts_count_as_answers_unless_they_are_said_to_be_none(self):
        rows = [{"q": "?", "answer": answer} for answer in ("5", "", "\n", None, "0")]
        split = Split(rows, [], "x")
        kept, _ = build_dataset(split, "q", as_text, ["answer"])
        assert len(kept) == 4
        kept, checked = build_dataset(split, "q", as_text, ["answer"], {"answer"})
        assert kept["answer"] == ["5", "0"]
        assert [bad.place for bad in checked.bad] == ["row 1", "row 2", "row 3"]
        # A column that no reward reads loses no row.
        assert len(build_dataset(split, "q", as_text, [], {"answer"})[0]) == 5

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
            match=r"^\S+: no usable row: 7 of 7 rows.*train.jsonl:1: prompt is empty.*and 2 more",
        ):
            build_dataset(split, "question", as_text)

    @pytest.mark.parametrize(
        "values",
        [
            [1, "one"],
            [{"a": 1}, {"b": [2]}],
            [["a"], None],
            [[{"x": 1}, {"y": None}], [{"x": "1"}]],
            [True, 0],
        ],
        ids=str,
    )
    def test_values_stay_as_load_dataset_reads_them(self, values, write, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        rows = [{"prompt": "q", "answer": value} for value in values]
        file = write("train.jsonl", jsonl(rows))
        dataset, _ = build_dataset(read_split(path=str(file)), "prompt", as_text)
        read_by_trl = load_dataset("json", data_files=str(file), cache_dir=tmp_path)["train"]
        assert dataset["answer"][:] == values == read_by_trl["answer"][:]

    def test_all_columns_stay(self):
        """TRL's script gives every column to the rewards, `messages` and `tools` among them."""
        said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        row = {"prompt": "q", "messages": said, "tools": [{"name": "f"}], "images": None}
        dataset, _ = build_dataset(Split([row], [], "x"), "prompt", as_text)
        assert dataset[0] == row | {"prompt": "q\n"}

    def test_what_no_dataset_holds(self):
        with pytest.raises(DataError, match=r"train.jsonl: a column cannot be loaded"):
            build_dataset(Split([{"prompt": "\ud800"}], [], "train.jsonl"), "prompt", as_text)

    def test_messages_need_a_chat_template(self):
        said = [{"role": "user", "content": "Hi"}]
        with pytest.raises(ModelError, match=r"no chat template.*--prompt_column"):
            build_dataset(Split([{"prompt": said}], [], "x"), "prompt", as_text)


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


def test_equal_prompts_are_on_one_side() -> None:
    alike = [{"prompt": f"{index % 30} + 1?", "place": index} for index in range(100)]
    held, rest = hold_out(Split(alike, [], "data"), 20, 0, "prompt")
    prompts = {row["prompt"] for row in held.rows}
    assert prompts and not prompts & {row["prompt"] for row in rest.rows}
    assert 15 < len(held.rows) <= 20 and len(held.rows) + len(rest.rows) == 100
    # One prompt for all rows cannot be separated, and different ones are held out as ever.
    same = [{"prompt": "?", "place": index} for index in range(10)]
    assert len(hold_out(Split(same, [], "data"), 2, 0, "prompt")[0].rows) == 2
    different = Split([{"prompt": str(index)} for index in range(10)], [], "data")
    assert hold_out(different, 3, 0, "prompt") == hold_out(different, 3, 0)
