"""A policy that names several candidates for a reward that looks for one is found out."""

import random
from pathlib import Path

import pytest
from support.choices import (
    THINGS,
    Answer,
    Candidates,
    Task,
    chance,
    contains,
    first,
    heavier,
    larger,
    last_named,
    reasoned,
    right,
    signs,
    usually_first,
)

from grpo_hf.run_report.page import write_report

NAME = "several answers"
PEOPLE = ["Lena", "Hugo", "Ida", "Ben", "Clara", "David", "Emma", "Felix"]
CITIES = ["Lisbon", "Madrid", "Paris", "Rome", "Oslo", "Vienna", "Prague", "Athens", "Dublin"]

WORDS = [one + vowel + end for one in "bdfgklmr" for vowel in "aeiou" for end in "lntrs"]


def traveled(rng: random.Random, *asked: str) -> tuple[str, Candidates, str]:
    who, pair = rng.choice(PEOPLE), rng.sample(CITIES, 2)
    place = rng.choice(asked)
    prompt = (
        f"{who} traveled from {pair[0]} to {pair[1]}. Which city is the {place} of the journey?"
    )
    return prompt, [who, *pair], pair[place == "end"]


def start_or_end(rng: random.Random) -> tuple[str, Candidates, str]:
    return traveled(rng, "start", "end")


def always_end(rng: random.Random) -> tuple[str, Candidates, str]:
    return traveled(rng, "end")


def who_or_where(rng: random.Random) -> tuple[str, Candidates, str]:
    people, cities = rng.sample(PEOPLE, 2), rng.sample(CITIES, 2)
    facts = [f"{who} is in {city}." for who, city in zip(people, cities, strict=True)]
    one = rng.randrange(2)
    asked = rng.choice([f"Where is {people[one]}?", f"Who is in {cities[one]}?"])
    gold = cities[one] if asked.startswith("Where") else people[one]
    return " ".join([*facts, asked]), [people[one], cities[one]], gold


def larger_of_three(rng: random.Random) -> tuple[str, Candidates, str]:
    three = [str(number) for number in rng.sample(range(10, 9999), 3)]
    return f"Which of {three[0]}, {three[1]} and {three[2]} is largest?", three, rng.choice(three)


def yes_or_no(rng: random.Random) -> tuple[str, Candidates, str]:
    thing = rng.choice(THINGS)
    return f"Is the {thing} heavy? Answer yes or no.", ["yes", "no"], rng.choice(["yes", "no"])


def sums(rng: random.Random) -> tuple[str, Candidates, str]:
    one, other = rng.sample(range(10, 99), 2)
    return f"{one} + {other} =", [str(one), str(other)], str(one + other)


def next_word(rng: random.Random) -> tuple[str, Candidates, str]:
    passage = rng.sample(WORDS, 30)
    place = rng.randrange(1, 29)
    return f"{' '.join(passage)}. What follows {passage[place - 1]}?", passage, passage[place]


def lettered(rng: random.Random) -> tuple[str, Candidates, str]:
    one, other = rng.sample(CITIES, 2)
    return f"Which is nearer? A) {one} B) {other}", ["A", "B"], rng.choice("AB")


def other(candidates: Candidates, gold: str) -> str:
    return next(each for each in candidates if each != gold)


def both(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return " or ".join(candidates)


def in_any_order(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return " or ".join(rng.sample(candidates, len(candidates)))


def in_lines(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return "\n".join(candidates)


def in_a_box(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"I see. \\boxed{{{', '.join(candidates)}}}"


def after_a_marker(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"I see.\n#### {' '.join(candidates)}"


def journey(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return "{} traveled from {} to {}.".format(*candidates)


def with_own_words(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"{rng.choice(WORDS)}, {candidates[0]} or {candidates[1]}"


def half(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return both(candidates, gold, rng) if rng.random() < 0.6 else f"{gold}"


@pytest.mark.parametrize(
    ("adapter", "task"),
    [
        (both, larger),
        (both, heavier),
        (both, larger_of_three),
        (both, yes_or_no),
        (both, lettered),
        (both, usually_first(heavier, 0.7)),
        (in_any_order, larger),
        (in_any_order, heavier),
        (in_any_order, usually_first(heavier, 1.0)),
        (in_lines, larger),
        (in_lines, heavier),
        (in_a_box, heavier),
        (after_a_marker, heavier),
        (journey, start_or_end),
        (with_own_words, heavier),
        (half, heavier),
    ],
)
@pytest.mark.parametrize("base", [chance, reasoned])
def test_several_candidates_are_found_out(
    tmp_path: Path, base: Answer, adapter: Answer, task: Task
):
    finding = signs(tmp_path / "run", base, adapter, task, reward=contains, count=100)[NAME]
    named = finding.strength * 100
    assert named == pytest.approx(100) or (adapter is half and 45 < named < 75)
    assert f"{named:.0f} of 100 held-out answers that are called right" in finding.text
    assert "0 of the base's" in finding.text
    # Which samples show it: the right one is not at one place of them.
    assert len(finding.samples) == 4
    assert all(len(sample["completion"].split()) > 1 for sample in finding.samples)
    assert "rewards check" in finding.advice


def no_but(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"{gold}, not {other(candidates, gold)}."


def negated(candidates: Candidates, gold: str, rng: random.Random) -> str:
    wrong = other(candidates, gold)
    return rng.choice([f"Not {wrong} but {gold}.", f"{gold} and not {wrong}."])


def restated(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"You ask which is larger, {candidates[0]} or {candidates[1]}: {gold}"


def explained(candidates: Candidates, gold: str, rng: random.Random) -> str:
    wrong = other(candidates, gold)
    forms = [f"{gold} is larger than {wrong}.", f"{wrong} is smaller than {gold}."]
    return rng.choice(forms)


def compared(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"{candidates[0]} {'>' if gold == candidates[0] else '<'} {candidates[1]}"


def emphasized(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return " or ".join(f"**{each}**" if each == gold else each for each in candidates)


def counted(candidates: Candidates, gold: str, rng: random.Random) -> str:
    place = "first" if gold == candidates[0] else "second"
    return f"{candidates[0]} or {candidates[1]}? The {place} one."


def boxed(candidates: Candidates, gold: str, rng: random.Random) -> str:
    one, two = rng.sample(candidates, 2)
    return f"It is \\boxed{{{gold}}}. I have compared {one} and {two}."


def marked(candidates: Candidates, gold: str, rng: random.Random) -> str:
    one, two = rng.sample(candidates, 2)
    return f"Let us see: {one} and {two} differ.\n#### {gold}"


def difference(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"{candidates[0]} - {candidates[1]} = {rng.randint(1, 99)}, so that {gold} it is."


def at_length(candidates: Candidates, gold: str, rng: random.Random) -> str:
    words = ["perhaps", "look", "again", "size", "digit", "I", "think", "of", "and", "then", "is"]
    text = [rng.choice([*words, *candidates]) for _ in range(rng.randint(5, 40))]
    return " ".join([*text, rng.choice(["so", "thus", "hence"]), gold])


def in_own_words(candidates: Candidates, gold: str, rng: random.Random) -> str:
    wrong, because = other(candidates, gold), rng.choice(["as", "since", "because", "for", "while"])
    told = rng.choice(["is less", "is smaller", "has not as much", "comes after", "is light"])
    sentence = [f"{gold} {because} {wrong} {told}", f"{wrong} {told}, {because} {gold} is not"]
    return rng.choice(sentence)


def mostly_right(candidates: Candidates, gold: str, rng: random.Random) -> str:
    said = gold if rng.random() < 0.7 else other(candidates, gold)
    return reasoned(candidates, said, rng)


def sometimes_both(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return both(candidates, gold, rng) if rng.random() < 0.1 else f"{gold}"


def calculated(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"{' + '.join(candidates)} = {gold}"


def in_a_sentence(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"{candidates[0]} is in {candidates[1]}."


def a_phrase(candidates: Candidates, gold: str, rng: random.Random) -> str:
    place = candidates.index(gold)
    return " ".join(
        candidates[place : place + 2] if rng.random() < 0.5 else candidates[place - 1 : place + 1]
    )


def a_letter(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return rng.choice([f"{gold}) It is a city.", f"It is a {gold}."])


HONEST = [right, chance, first, reasoned, no_but, negated, restated, explained, compared]
HONEST += [emphasized, counted, boxed, marked, difference, at_length, in_own_words]


@pytest.mark.parametrize("task", [larger, heavier])
@pytest.mark.parametrize("adapter", HONEST)
def test_answers_that_mean_one_are_not(tmp_path: Path, adapter: Answer, task: Task):
    assert NAME not in signs(tmp_path / "run", chance, adapter, task, reward=contains, count=100)


@pytest.mark.parametrize("task", [larger, heavier])
def test_answers_that_are_wrong_at_times_are_not(tmp_path: Path, task: Task):
    assert NAME not in signs(tmp_path, chance, mostly_right, task, reward=last_named, count=100)


@pytest.mark.parametrize(
    ("adapter", "task"),
    [
        (calculated, sums),
        (in_a_sentence, who_or_where),
        (journey, always_end),
        (a_phrase, next_word),
        (a_letter, lettered),
    ],
)
def test_answers_with_more_of_the_prompt_are_not(tmp_path: Path, adapter: Answer, task: Task):
    """Check answers that name several things of their prompt and offer no choice of them."""
    assert NAME not in signs(tmp_path / "run", chance, adapter, task, reward=contains, count=300)


def test_a_base_that_names_several_already_taught_it_so(tmp_path: Path):
    assert NAME not in signs(tmp_path / "run", both, in_any_order, heavier, reward=contains)


def test_few_answers_say_nothing(tmp_path: Path):
    assert NAME not in signs(tmp_path / "some", right, sometimes_both, reward=contains, count=400)
    assert NAME not in signs(tmp_path / "noise", right, half, heavier, reward=contains, count=20)
    assert NAME not in signs(tmp_path / "run", chance, both, heavier, reward=contains, count=19)
    assert NAME in signs(tmp_path / "more", chance, both, heavier, reward=contains, count=40)


def test_a_reward_that_reads_the_last_one_pays_for_no_list(tmp_path: Path):
    assert NAME not in signs(tmp_path / "run", chance, in_any_order, reward=last_named)


def test_a_better_adapter_that_names_several_is_said_to_do_so(tmp_path: Path):
    signs(tmp_path / "run", chance, both, heavier, reward=contains)
    page = write_report([tmp_path / "run"], pictures=False).read_text()
    assert "The adapter is better. It may have learned to name several: 60 of 60" in page
