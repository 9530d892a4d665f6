"""Data files for the tests: rows, and how a user reads them back."""

import json

from grpo_hf.data.prompts import PromptForm, prompt_builder

ROWS = [
    {"question": "1 + 1?", "answer": "#### 2"},
    {"question": "Wie groß?\nSehr, „so“.", "answer": "#### 3"},
]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_text(raw):
    return prompt_builder(PromptForm(chat=False))(raw)
