"""Expressions whose terms differ by hundreds of digits: a small term counts like a large one."""

import math as stdlib_math
import random
import time

import pytest

from grpo_hf.rewards.math import math

DIFFERENT = [
    ("(x+1)^{200}", "(x+1)^{200}+1"),
    ("(x+1)^{5000}", "(x+1)^{5000}+1"),
    ("(x-3)^{900}", "(x-3)^{900}+y"),
    ("x^{300}+x", "x^{300}+1"),
    ("x^{2000}+x^{1000}", "x^{2000}"),
    (r"\frac{x^{300}+1}{x^{300}}", "1"),
    (r"\sqrt{x^{400}+1}", "x^{200}"),
    ("y=(x+1)^{200}", "y=(x+1)^{200}+1"),
    ("y(x+1)^{300}=x", "y(x+1)^{300}=x+1"),
    ("10^{50}+n", "10^{50}"),
    ("10^{50}+n", "10^{50}+|n|"),
    ("x+10^{-200}", "x"),
    ("10^{-100}n", r"2\cdot 10^{-100}n"),
    (r"10^{50}\pi", r"10^{50}\pi+1"),
    (r"10^{50}\pi", r"10^{50}\pi+0.5"),
    (r"10^{40}i\sqrt2+1", r"10^{40}i\sqrt2"),
    (r"(10^{50}\pi,\infty)", r"(10^{50}\pi+1,\infty)"),
    (r"x>10^{50}\pi", r"x>10^{50}\pi+1"),
    (r"\{10^{50}\pi, 1\}", r"\{10^{50}\pi+1, 1\}"),
    ("(10^{50}+n, 2)", "(10^{50}, 2)"),
    ("e^{1000x^2}+1", "e^{1000x^2}"),
    ("e^{-10000x^2}", "2e^{-10000x^2}"),
    ("2^{1000n^2}+1", "2^{1000n^2}"),
    ("e^{e^{6}x^2}", "e^{e^{6}x^2}+x"),
    ("e^{10^{-80}x}", "1"),
    (r"\cos(10^{-100}x)", "1"),
    (r"\sin(10^{200}x)", r"\sin(10^{200}x+1)"),
    (r"\tanh(500x^2)", "1"),
    (r"\sinh(1000x^2)", r"\cosh(1000x^2)"),
    (r"\arctan(10^{90}x^2)", r"\frac{\pi}{2}"),
    (r"\ln(e^{500x^2}+1)", "500x^2"),
    ("(n!)^{40}+1", "(n!)^{40}"),
    ("(1+10^{-40}x)(1-10^{-40}x)", "1"),
]

THE_SAME = [
    ("(x+1)^{200}", "(1+x)^{100}(x+1)^{100}"),
    ("(x+1)^{5000}+1", "1+(1+x)^{5000}"),
    ("x^{300}+x", "x(1+x^{299})"),
    ("10^{50}+n", "n+10^{50}"),
    (r"10^{50}\pi+1", r"1+\pi\cdot 10^{50}"),
    (r"(10^{50}\pi,\infty)", r"(\pi\cdot 10^{50},\infty)"),
    (r"x>10^{50}\pi", r"x>\pi\cdot 10^{50}"),
    (r"6.63\cdot10^{-34}\pi c", r"c\pi\cdot 6.63\cdot10^{-34}"),
    ("y=(x+1)^{200}", "2y=2(x+1)^{200}"),
    ("e^{1000x^2}+1", "1+(e^{x^2})^{1000}"),
    (r"\sin\pi+x", "x"),
    (r"\tanh(500x)", r"\frac{e^{500x}-e^{-500x}}{e^{500x}+e^{-500x}}"),
    ("n!(n+1)", "(n+1)!"),
    (r"\frac{(2n)!}{n!n!}", r"\binom{2n}{n}"),
]


def score(answer, gold):
    [reward] = math([rf"\boxed{{{answer}}}"], answer=[gold])
    return reward


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_a_term_that_is_small_beside_another_one_counts(left, right):
    assert score(left, right) == score(right, left) == 0.0
    assert score(left, left.replace("+", " + ")) == 1.0


@pytest.mark.parametrize(("left", "right"), THE_SAME)
def test_large_and_small_terms_may_be_written_in_another_way(left, right):
    assert score(left, right) == score(right, left) == 1.0


def polynomial(coefficients):
    """Return the LaTeX of a polynomial, from {exponent: coefficient}."""
    return "+".join(f"{factor}x^{{{power}}}" for power, factor in coefficients.items())


@pytest.mark.long
def test_polynomials_are_the_same_where_their_coefficients_are():
    rng = random.Random(0)
    for _ in range(60):
        degrees = rng.sample([0, 1, 2, 3, 10, 50, 200, 400, 900], k=rng.randint(2, 5))
        gold = {power: rng.choice([1, 3, 10**20, 10**40]) for power in degrees}
        names = list(gold)
        rng.shuffle(names)
        same = {power: gold[power] for power in names}
        assert score(polynomial(same), polynomial(gold)) == 1.0
        off = {**same, names[0]: same[names[0]] + rng.choice([-1, 1, 7])}
        assert score(polynomial(off), polynomial(gold)) == 0.0, (off, gold)
        less = {power: same[power] for power in names[1:]}
        assert score(polynomial(less), polynomial(gold)) == 0.0, (less, gold)


@pytest.mark.parametrize("degree", [3, 12, 24])
def test_binomials_are_their_expansions(degree):
    expansion = {power: stdlib_math.comb(degree, power) for power in range(degree + 1)}
    gold = f"(x+1)^{{{degree}}}"
    assert score(polynomial(expansion), gold) == 1.0
    for power in expansion:
        off = {**expansion, power: expansion[power] + 1}
        assert score(polynomial(off), gold) == score(gold, polynomial(off)) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        *("(x+1)^{5000}", "e^{1000x^2}", "e^{6000}", "x^{900}!", r"\sin(10^{200}x)", "x^{9000}"),
        *("+".join(["(x+1)^{4000}"] * 20), "+".join(["e^{900x}"] * 40), r"\tanh(900x)"),
        *("+".join([r"\sin x^{900}"] * 38), r"\binom{x^{90}}{x}" * 20, "10^{400}x!" * 20),
    ],
)
def test_more_digits_take_little_time(answer):
    score("1", "2")
    for gold in (answer, f"1+{answer}", answer.replace("x", "1x")):
        for given in (answer, f"0+{answer}", f"{answer}+1"):
            start = time.process_time()
            score(given, gold)
            # Some ten milliseconds where nothing else runs.
            assert time.process_time() - start < 0.25
