"""Raw rows are read from files and the Hub, and every bad line is named."""

import csv
import json

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetNotFoundError
from pyarrow import parquet
from support.chats import SHAPES
from support.data_files import ROWS, as_text, jsonl

from grpo_hf.data.readers import EMBEDDED, EMBEDDED_PROBLEMS, SUFFIXES, read_split
from grpo_hf.data.rows import build_dataset, column_names
from grpo_hf.data.streams import open_stream
from grpo_hf.errors import DataError, HubUnreachable


def read(path, **options):
    """Return the rows as a user knows them, without their places."""
    split = read_split(path=str(path), **options)
    names = column_names(split.rows)
    return [{name: row[name] for name in names} for row in split.rows]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bom", [False, True], ids=["plain", "byte-order-mark"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
def test_every_format_gives_the_same_rows(tmp_path, suffix, bom, newline):
    file = tmp_path / f"train{suffix}"
    encoding = "utf-8-sig" if bom else "utf-8"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    elif suffix == ".csv":
        with file.open("w", encoding=encoding, newline="") as stream:
            writer = csv.DictWriter(stream, ROWS[0], lineterminator=newline)
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        text = jsonl(ROWS) if suffix == ".jsonl" else json.dumps(ROWS, indent=1)
        file.write_bytes(text.replace("\n", newline).encode(encoding))
    assert read(file) == ROWS
    assert read(tmp_path) == ROWS  # the folder that holds it


def test_a_parquet_file_that_datasets_wrote(tmp_path):
    rows = [{"prompt": messages} for messages in SHAPES.values()]
    written = Dataset.from_list(rows, on_mixed_types="use_json")
    written.to_parquet(tmp_path / "train.parquet")
    assert read(tmp_path) == rows


def test_line_separators_inside_a_text_do_not_end_a_row(write):
    rows = [{"question": "one\u2028two\x85three", "answer": "1"}]
    assert read(write("train.jsonl", jsonl(rows))) == rows


def test_bad_lines_are_counted_and_named(write):
    good = json.dumps(ROWS[0])
    file = write("train.jsonl", f'{good}\n\n{{"question": \n[1, 2]\n{good}\n')
    split = read_split(path=str(file))
    assert len(split.rows) == 2
    assert [str(bad) for bad in split.bad] == [
        "train.jsonl:3: not JSON: it ends too early, after '{\"question\":'",
        "train.jsonl:4: expected an object, got list",
    ]
    assert split.describe_bad() == (
        f"{file}: 2 of 4 rows left out ({split.bad[0]}; train.jsonl:4: expected an object, got "
        "list)"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a": "two", "b": "7"', "it ends too early, after '" + '{"a": "two", "b": "7"'),
        ("{'question': 'two'}", "not JSON from character 2 on: \"'question': 'two'}\""),
        ('{"a": 1, b: 2}', "not JSON from character 10 on: 'b: 2}'"),
        ('{"a": 1} ' + "x" * 60, "not JSON from character 10 on: '" + "x" * 40 + "...'"),
    ],
)
def test_a_broken_line_is_shown_where_it_breaks(write, line, said):
    file = write("train.jsonl", jsonl(ROWS) + line + "\n")
    (bad,) = read_split(path=str(file)).bad
    assert said in bad.reason


def test_many_bad_lines_are_counted_and_the_first_named(write):
    split = read_split(path=str(write("train.jsonl", jsonl(ROWS) + "oops\n" * 8)))
    text = split.describe_bad()
    assert ": 8 of 10 rows left out (train.jsonl:3: " in text
    assert all(f"train.jsonl:{line}:" in text for line in range(3, 8))
    assert "train.jsonl:8:" not in text
    assert text.endswith("; and 3 more)")


def test_bad_entries_of_a_json_list_are_named_by_index(write):
    split = read_split(path=str(write("train.json", json.dumps([ROWS[0], 7]))))
    assert [str(bad) for bad in split.bad] == ["train.json[1]: expected an object, got int"]


def test_torn_csv_lines_are_named(write):
    split = read_split(path=str(write("train.csv", "question,answer\nq,a\nq\nq,a,b\nq2,a2\n")))
    assert [row["question"] for row in split.rows] == ["q", "q2"]
    assert [str(bad) for bad in split.bad] == [
        "train.csv:3: expected 2 fields",
        "train.csv:4: expected 2 fields",
    ]


def test_csv_that_breaks_off_inside_quotes(write):
    file = write("train.csv", 'question,answer\nq,a\n"never closed,a\n')
    with pytest.raises(DataError, match=r"train\.csv:3: not CSV .*nothing was read"):
        read_split(path=str(file))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("verb;sentence;past", "2 semicolons;"),
        ('"verb";"past"', "1 semicolon;"),
        ("verb\tpast;tense\tperson", "2 tabs;"),
        ("sep=;", "1 semicolon;"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_with_another_separator_is_refused(write, header, said, newline):
    """Read with commas, the rows that hold none would be one column of everything."""
    file = write("train.csv", newline.join([header, "go;I go;went", "be;No, I am;was", ""]))
    with pytest.raises(DataError) as read_whole:
        read_split(path=str(file))
    with pytest.raises(DataError) as streamed:
        open_stream(path=str(file), name=None, config=None, split="train")
    message = str(read_whole.value)
    assert message.startswith(f"{file}:1: the header has no comma between columns and {said}")
    assert "Save it with commas, or as JSON lines" in message
    assert str(streamed.value) == message


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("question", ["question"]),
        ("the question: one, or two?", ["the question: one", " or two?"]),
        ('"ask; answer"', ["ask; answer"]),
        ("a;b,c", ["a;b", "c"]),
    ],
)
def test_csv_with_commas_or_one_column_is_read(write, header, columns):
    rows = "".join(["x;y" + ",z" * (len(columns) - 1) + "\n"] * 2)
    split = read_split(path=str(write("train.csv", f"\ufeff{header}\n{rows}")))
    assert column_names(split.rows) == columns and len(split.rows) == 2 and not split.bad


def test_a_column_that_only_some_rows_have_is_kept(write):
    split = read_split(
        path=str(write("train.jsonl", '{"question": "a"}\n{"question": "b", "hint": "c"}\n'))
    )
    dataset, _ = build_dataset(split, "question", as_text)
    assert dataset["hint"] == [None, "c"]


def test_an_empty_csv_cell_is_a_null(write):
    split = read_split(path=str(write("train.csv", "question,answer\nq1,a\nq2,\n")))
    dataset, checked = build_dataset(split, "question", as_text, ["answer"])
    assert dataset["prompt"] == ["q1\n"]
    assert [str(bad) for bad in checked.bad] == ["train.csv:3: answer is empty"]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("train.jsonl", "", "it holds no rows"),
        ("train.csv", "question,answer\n", "it holds no rows"),
        ("train.json", "[]", "it holds no rows"),
        ("train.jsonl", "oops\noops\n", "2 of 2 rows left out .*train.jsonl:1: not JSON"),
        ("train.json", '{"question": 1}', "expected a JSON list of objects, got dict"),
        ("train.json", '{"a": 1}\n{"a": 2}', "train.json:2: not JSON .* Name it .jsonl"),
        ("train.jsonl", '{"question": "gr\xfc\xdfe"}\n'.encode("latin-1"), "not UTF-8 text"),
        ("train.json", '[{"question": "gr\xfc\xdfe"}]'.encode("latin-1"), "not UTF-8 text"),
        ("train.parquet", "question,answer", "not a Parquet file"),
        ("train.txt", "question", r"ends in one of .jsonl, .json, .csv, .parquet; not '.txt'"),
    ],
)
def test_files_without_rows_are_refused(write, name, content, expected):
    file = write(name, content)
    with pytest.raises(DataError, match=expected) as error:
        read_split(path=str(file))
    assert str(file) in str(error.value)


class TestSplits:
    def test_a_folder_holds_a_file_per_split(self, write, tmp_path):
        write("train.jsonl", jsonl(ROWS))
        write("test.csv", "question,answer\nq,a\n")
        assert read(tmp_path, split="train") == ROWS
        assert read(tmp_path, split="test") == [{"question": "q", "answer": "a"}]
        assert read_split(path=str(tmp_path), split="validation", optional=True) is None

    def test_missing_split_of_a_folder(self, write, tmp_path):
        write("trian.jsonl", jsonl(ROWS))
        with pytest.raises(
            DataError, match=r"no file for the split 'train'.*the folder holds trian.jsonl"
        ):
            read_split(path=str(tmp_path))

    def test_missing_path_names_its_neighbour(self, write, tmp_path):
        write("train.jsonl", jsonl(ROWS))
        with pytest.raises(
            DataError,
            match=r"trian.jsonl: no such dataset file or folder. Did you mean '/.*/train.jsonl'",
        ):
            read_split(path=str(tmp_path / "trian.jsonl"))

    def test_a_relative_path_says_where_it_was_looked_for(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=f"no such .* folder, looked for in {tmp_path}"):
            read_split(path="nowhere.jsonl")

    def test_one_file_is_the_training_split(self, write):
        file = str(write("mine.jsonl", jsonl(ROWS)))
        assert read_split(path=file, split="test", optional=True) is None
        with pytest.raises(
            DataError, match=r"one file is the split 'train', and the split 'test' was asked for"
        ):
            read_split(path=file, split="test")

    def test_nothing_named(self):
        with pytest.raises(DataError, match=r"--dataset_path .* or --dataset_name"):
            read_split()


class TestEmbedded:
    @pytest.mark.parametrize("path", EMBEDDED_PROBLEMS)
    def test_same_rows_for_the_same_seed(self, path):
        assert read(path, seed=3) == read(path, seed=3) != read(path, seed=4)

    @pytest.mark.parametrize("path", EMBEDDED_PROBLEMS)
    def test_train_and_test_share_no_question(self, path):
        train = {row["question"] for row in read(path, split="train")}
        test = {row["question"] for row in read(path, split="test")}
        assert train and test
        assert not train & test

    def test_a_split_that_it_does_not_have(self):
        """Training rows under another name would make the evaluation a lie."""
        assert read_split(path=EMBEDDED, split="validation", optional=True) is None
        with pytest.raises(
            DataError, match=r"no split 'tset'; it has train and test. Did you mean 'test'"
        ):
            read_split(path=EMBEDDED, split="tset")


class TestHub:
    """`load_dataset` is replaced by a function that returns and raises as in datasets 5."""

    @pytest.fixture
    def hub(self, monkeypatch):
        def answer(value):
            def load_dataset(name, config, streaming):
                if isinstance(value, Exception):
                    raise value
                return value

            monkeypatch.setattr("grpo_hf.data.readers.load_dataset", load_dataset)

        return answer

    def test_split_of_a_dataset(self, hub):
        hub(DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])))
        split = read_split(name="org/data", split="test")
        assert column_names(split.rows) == ["question", "answer"]
        assert split.source == "org/data (test)"
        assert read_split(name="org/data", split="validation", optional=True) is None
        with pytest.raises(
            DataError, match=r"no split 'tset'; it has train, test. Did you mean 'test'"
        ):
            read_split(name="org/data", split="tset")

    @pytest.mark.parametrize(
        "raised, error, expected",
        [
            (
                ConnectionError("Couldn't reach 'org/data' on the Hub"),
                HubUnreachable,
                "--dataset_path embedded:word_p",
            ),
            (
                DatasetNotFoundError("Dataset 'org/data' doesn't exist on the Hub"),
                DataError,
                "doesn't exist",
            ),
            (
                ValueError("Config name is missing. Please pick one among ['main', 'socratic']"),
                DataError,
                "socratic",
            ),
            (
                RuntimeError("Dataset scripts are no longer supported"),
                DataError,
                "no longer supported",
            ),
        ],
    )
    def test_refusals(self, hub, raised, error, expected):
        hub(raised)
        with pytest.raises(error, match=expected) as caught:
            read_split(name="org/data")
        assert "'org/data'" in str(caught.value)
