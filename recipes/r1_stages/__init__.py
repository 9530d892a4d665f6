"""Parts of recipes/r1.py: `table` compares its stages on the held-out prompts."""
