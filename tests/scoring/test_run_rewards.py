"""The rewards of a run: one function with two sets of options has two names."""

from support.registry import lengths

from grpo_hf.scoring.registry import register_reward
from grpo_hf.scoring.run_rewards import callables_of, scored_rewards


def test_one_function_with_two_options_is_two_metrics(monkeypatch):
    monkeypatch.setattr("grpo_hf.scoring.registry._registered", {})

    @register_reward("short")
    def short(completions, *, limit=200, where="all of it", **columns):
        return [float(len(text) <= limit) for text in completions]

    given = ["short(limit=50)", {"short": {"limit": 0.5, "where": "the end"}}, lengths, "short"]
    entries = scored_rewards(given)
    names = ["short-limit-50-where-all_of_it", "short-limit-0.5-where-the_end", "lengths"]
    names.append("short-limit-200-where-all_of_it")
    assert [entry.__name__ for entry in entries] == names
    # TRL names the metrics by what it gets.
    assert [function.__name__ for function in callables_of(given, entries)] == names
