"""Sums and differences of one and two digits, with the written steps that lead to them."""

from __future__ import annotations

import random

from .sample import Sample, turn

_SUM = (
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a} + {b} = ?",
    "What is {a} plus {b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "Please add {a} and {b}.",
    "Compute {a} + {b}.",
    "Calculate {a} + {b}.",
    "What is the sum of {a} and {b}?",
    "Can you add {a} to {b}?",
    "I have {a} apples and get {b} more. How many apples do I have?",
    "There are {a} birds, then {b} more come. How many birds are there?",
)
_DIFFERENCE = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a} - {b} = ?",
    "What is {a} minus {b}?",
    "How much is {a} - {b}?",
    "How much is {a} minus {b}?",
    "Take {b} from {a}.",
    "Please subtract {b} from {a}.",
    "Compute {a} - {b}.",
    "Calculate {a} - {b}.",
    "What is the difference of {a} and {b}?",
    "Subtract {b} from {a}.",
)


def sum_steps(a: int, b: int) -> str:
    """The answer to a + b (each 0..99): one line of column addition."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    ones = a % 10 + b % 10
    steps = f"{a % 10} + {b % 10} = {ones}"
    tens = f"{a // 10} + {b // 10}" + (" + 1" if ones >= 10 else "")
    return f"{steps}, {tens} = {a // 10 + b // 10 + ones // 10}, so {a} + {b} = {a + b}."


def difference_steps(a: int, b: int) -> str:
    """The answer to a - b (each 0..99); a smaller a is turned round first."""
    if a < b:
        return f"{a} is less than {b}: {_column(b, a)}, so {a} - {b} = {a - b}."
    if a < 10 and b < 10:
        return f"{a} - {b} = {a - b}."
    return f"{_column(a, b)}, so {a} - {b} = {a - b}."


def thought_and_answer(solved: str) -> tuple[str, str]:
    """A written answer cut in two: the steps, and what comes out; a sum of one step is both."""
    steps, comma, last = solved.rpartition(", so ")
    return (steps, last) if comma else (last.removesuffix("."), last)


def _column(a: int, b: int) -> str:
    ones, tens = a % 10, a // 10
    if ones < b % 10:
        ones, tens = ones + 10, tens - 1
    return f"{ones} - {b % 10} = {ones - b % 10}, {tens} - {b // 10} = {tens - b // 10}"


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10) if digits == 1 else rng.randrange(10, 100)


def two_digit_key(sign: str, a: int, b: int) -> str:
    # One-digit sums are a table of 200 facts: all of it is taught, none is evaluated as held out.
    return f"sum {a} {sign} {b}" if max(a, b) >= 10 else "taught"


def sums(rng: random.Random, digits: int = 0) -> Sample:
    """A sum or a difference; digits 1 or 2 fixes the size of both numbers."""
    first = digits or rng.choice((1, 2, 2, 2, 2))
    second = digits or (rng.choice((1, 2, 2, 2)) if first == 2 else rng.choice((1, 1, 2)))
    a, b = _number(rng, first), _number(rng, second)
    sign = rng.choice("+-")
    if sign == "-" and a < b and rng.random() < 0.6:
        a, b = b, a
    phrase = rng.choice(_SUM if sign == "+" else _DIFFERENCE).format(a=a, b=b)
    if rng.random() < 0.1:
        phrase = phrase.replace(f" {sign} ", sign)
    answer = sum_steps(a, b) if sign == "+" else difference_steps(a, b)
    return Sample(two_digit_key(sign, a, b), turn(phrase, answer))
