"""A file that cannot be streamed is named, whatever its format and wherever it breaks."""

import pytest
from support.data_files import as_text, jsonl

from grpo_hf.data.streams import first_rows_of, open_stream, stream_with_prompts
from grpo_hf.errors import DataError

BROKEN = {
    "empty.jsonl": "",
    "blank.jsonl": "\n\n",
    "empty.csv": "",
    "header.csv": "prompt,answer\n",
    "line.jsonl": '{"prompt": "a"}\n{"prompt": oops\n',
    "quote.csv": 'prompt,answer\n"a,1\n',
    "text.parquet": "no Parquet",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(name, tmp_path):
    file = tmp_path / name
    file.write_text(BROKEN[name])
    with pytest.raises(DataError, match=name):
        stream = open_stream(path=str(file), name=None, config=None, split="train")
        first_rows_of(stream, 5, str(file))


def test_a_blank_text_is_an_answer_unless_it_is_said_to_be_none(tmp_path, caplog):
    file = tmp_path / "rows.jsonl"
    file.write_text(jsonl([{"q": "?", "answer": answer} for answer in ("5", "", None)]))
    stream = open_stream(path=str(file), name=None, config=None, split="train")
    kept = stream_with_prompts(stream, {}, "q", as_text, ["answer"])
    assert [row["answer"] for row in kept] == ["5", ""]
    caplog.clear()
    kept = stream_with_prompts(stream, {}, "q", as_text, ["answer"], {"answer"})
    assert [row["answer"] for row in kept] == ["5"]
    assert caplog.text.count("A row of the stream is left out: answer is empty") == 2
