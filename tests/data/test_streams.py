"""A file that cannot be streamed is named, whatever its format and wherever it breaks."""

import pytest

from grpo_hf.data.streams import first_rows_of, open_stream
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
