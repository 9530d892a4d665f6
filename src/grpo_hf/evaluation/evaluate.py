"""Base and adapter on a set of problems: greedy and sampled answers, judged and kept.

RUN/evaluations/NAME.jsonl      a line per problem: prompt, gold answer, both sides' answers
RUN/evaluations/NAME.json       the summary: accuracies, pass@k, maj@k, differences, flips
RUN/evaluations/NAME.partial/   answers so far, while an evaluation is under way
"""

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..data.completions import Completion, completion_text
from ..rollout.sampling import GREEDY, Written
from ..run_files import write_whole
from .answers import completed_batches, is_right, judged, own_places
from .comparison import GreedyAnswers
from .kept_answers import Answer, KeptAnswers, by_main
from .problem_set import SIDES, Answering, ProblemSet, digest_of
from .summary import summary_of

logger = logging.getLogger(__name__)


# Is told of each part when it begins, and of each of its batches: the side, greedy or samples, and
# how many problems this process has kept from an earlier attempt, or has completed since.
Progress = Callable[[str, str, int], None]
Line = dict[str, Any]
_NO_SAMPLES: Answer = {"texts": [], "turns": [], "right": []}


def evaluate(
    model: Any,
    tokenizer: Any,
    problems: ProblemSet,
    answering: Answering,
    folder: Path,
    *,
    facts: dict[str, Any] | None = None,
    trainer_state: Any = None,
    progress: Progress = lambda side, kind, count: None,
) -> dict[str, Any]:
    """Answer a set with and without the adapter, write answers and summary, and return this.

    Processes share the problems. What an earlier attempt with the same settings has answered is
    not answered again, and an evaluation that is complete is read from its file.

    Args:
        model: the policy, unwrapped.
        folder: of the evaluations of a run.
        facts: what else decides the answers, such as a digest of the adapter; kept in the summary.
        trainer_state: for rewards that read it.

    Raises:
        OSError: the results cannot be written.
    """
    settings = _settings_of(problems, answering, facts or {})
    # Others may see another disk, and all of them answer or none does.
    finished = by_main(lambda: finished_summary(folder, problems.name, settings))
    if finished is not None:
        return finished
    kept = KeptAnswers(folder / f"{problems.name}.partial", settings)
    for side in SIDES:
        with answering.seen_as(side, model):
            for kind in _kinds(answering):
                done = kept.done(side, kind)
                progress(side, kind, len(done))
                known = problems.answered.get(side) if kind == "greedy" else None
                if known is None:
                    batches = _batches(model, tokenizer, problems, answering, kind, done)
                else:
                    batches = [_taken(known, done)]
                for groups in batches:
                    answers = _judged_answers(
                        tokenizer, problems, groups, known, kind, trainer_state
                    )
                    kept.keep({"side": side, **answer} for answer in answers)
                    # A batch of which a part was kept is answered again.
                    progress(side, kind, len(groups.keys() - done))
    # This may take a while where there are many samples.
    progress("both", "comparing", 0)
    lines = _lines(problems, kept.all())
    summary = _summary(problems, answering, lines, settings)
    by_main(lambda: _write(folder, problems.name, lines, summary))
    kept.remove()
    return summary


def parts_of(answering: Answering) -> list[tuple[str, str]]:
    """Return what an evaluation does, in its order: sides and kinds of answers."""
    return [(side, kind) for side in SIDES for kind in _kinds(answering)]


def finished_summary(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary of a complete evaluation with the same settings, if there is one."""
    file = folder / f"{name}.json"
    if not file.is_file():
        return None
    try:
        summary: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    of_this = isinstance(summary, dict) and summary.get("settings") == settings
    return summary if of_this else None


def _kinds(answering: Answering) -> Sequence[str]:
    return ("greedy", "samples") if answering.samples else ("greedy",)


def _settings_of(
    problems: ProblemSet, answering: Answering, facts: dict[str, Any]
) -> dict[str, Any]:
    rewards = [reward.reward.spec for reward in problems.rewards]
    return {
        **answering.settings(),
        **facts,
        "source": problems.source,
        "data": digest_of(problems),
        "rewards": rewards,
        # Another number of processes has other batches, and so other samples.
        "processes": PartialState().num_processes,
    }


def _batches(
    model: Any,
    tokenizer: Any,
    problems: ProblemSet,
    answering: Answering,
    kind: str,
    done: set[int],
) -> Iterable[dict[int, list[Written]]]:
    prompts = [row["prompt"] for row in problems.rows]
    copies = answering.samples if kind == "samples" else 1
    decoding = answering.decoding | {"batch_size": max(1, answering.batch_size // copies)}
    return completed_batches(
        model,
        tokenizer,
        prompts,
        copies=copies,
        sampling=answering.sampling if kind == "samples" else GREEDY,
        seed=answering.seed,
        done=done,
        **decoding,
    )


def _taken(known: GreedyAnswers, done: set[int]) -> dict[int, list[Written]]:
    """Return this process's share of answers that are there already, as one batch."""
    groups = {}
    for place in own_places(len(known.completions)):
        if place not in done:
            groups[place] = [Written(known.completions[place], known.cut[place])]
    return groups


def _judged_answers(
    tokenizer: Any,
    problems: ProblemSet,
    groups: dict[int, list[Written]],
    known: GreedyAnswers | None,
    kind: str,
    trainer_state: Any,
) -> list[Answer]:
    """Return the answers of a batch with what the rewards say of them.

    Args:
        known: where the answers are from, if they were there already and the first reward has
            judged them.
    """
    completions: list[Completion] = []
    rows: list[dict[str, Any]] = []
    for place, group in groups.items():
        completions += [written.completion for written in group]
        rows += [problems.rows[place]] * len(group)
    if not completions:
        return []
    texts = list(map(completion_text, completions))
    # Rewards may read token ids. Those of the text are near enough for an evaluation.
    more = {
        "completion_ids": tokenizer(texts, add_special_tokens=False)["input_ids"],
        "trainer_state": trainer_state,
    }
    outcomes = {}
    for reward in problems.rewards:
        if known is not None and reward is problems.reward:
            outcomes[reward.__name__] = [known.outcomes[place] for place in groups]
        else:
            outcomes[reward.__name__] = judged(reward, rows, completions, **more)
    right = list(map(is_right, outcomes[problems.reward.__name__]))
    answers = []
    start = 0
    for place, group in groups.items():
        end = start + len(group)
        answer: Answer = {"kind": kind, "row": place, "right": right[start:end]}
        answer["texts"] = texts[start:end]
        # Turns of tools stand between those of the model.
        said = completions[start:end]
        answer["turns"] = [None if isinstance(text, str) else text for text in said]
        answer["cut"] = [written.is_cut for written in group]
        rewards = []
        for index in range(start, end):
            rewards.append({name: found[index].value for name, found in outcomes.items()})
        if kind == "greedy":
            (answer["rewards"],) = rewards
        else:
            answer["sample_rewards"] = rewards
        answers.append(answer)
        start = end
    return answers


def _lines(problems: ProblemSet, answers: dict[Any, Answer]) -> list[Line]:
    """Return a line per problem, in the order of the data."""
    lines = []
    for place, row in enumerate(problems.rows):
        line: Line = {
            "row": place,
            "prompt": row["prompt"],
            "gold": problems.gold(row),
            "category": problems.category_of(row),
        }
        if problems.trained is not None:
            line["in_training"] = problems.trained[place]
        for side in SIDES:
            greedy = answers[side, "greedy", place]
            samples = answers.get((side, "samples", place), _NO_SAMPLES)
            # Those that an earlier version has kept of this evaluation have none.
            rewards = samples.get("sample_rewards", [None] * len(samples["texts"]))
            line[side] = {
                "greedy": greedy["texts"][0],
                "turns": greedy["turns"][0],
                "greedy_right": greedy["right"][0],
                "greedy_cut": greedy["cut"][0],
                "rewards": greedy["rewards"],
                "samples": samples["texts"],
                "sample_turns": samples["turns"],
                "right": samples["right"],
                "sample_rewards": rewards,
                "answers": _final_answers(problems, row, samples["texts"]),
            }
        lines.append(line)
    return lines


def _final_answers(problems: ProblemSet, row: Line, texts: Sequence[str]) -> list[str | None]:
    """Return the answers that vote together; None for all where the reward does not know them."""
    answers_of = problems.reward.reward.settings.answers
    if answers_of is None:
        return [None] * len(texts)
    try:
        # The first parameter is the texts; others are columns, as in a reward.
        _, *names = inspect.signature(answers_of).parameters
    except ValueError:
        # Some functions that are written in C do not tell theirs.
        names = []
    return answers_of(list(texts), **{name: row[name] for name in names if name in row})


def _summary(
    problems: ProblemSet, answering: Answering, lines: Sequence[Line], settings: dict[str, Any]
) -> dict[str, Any]:
    votes = problems.reward.reward.settings.answers is not None
    reward = problems.reward.__name__
    summary = summary_of(lines, votes=votes, limit=answering.max_new_tokens, reward=reward)
    failed = len(lines) - summary["problems"]
    if failed and PartialState().is_main_process:
        logger.warning(
            f"The reward failed on {failed} of {len(lines)} problems of {problems.name}, which are "
            "left out."
        )
    return {
        "set": problems.name,
        "reward": problems.reward.reward.spec,
        "samples": answering.samples,
        "category": problems.category,
        **summary,
        "settings": settings,
    }


def _write(folder: Path, name: str, lines: Sequence[Line], summary: dict[str, Any]) -> None:
    written = []
    for line in lines:
        written.append(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    write_whole(folder / f"{name}.jsonl", "".join(written))
    # The last, since it says that the evaluation is complete.
    write_whole(folder / f"{name}.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
