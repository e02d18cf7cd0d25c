"""Word problems of arithmetic without end: one or two steps, small numbers, a whole number as the answer.

Each is drawn from a seed, so a set can be made again; none of a second set stands in the first one.
"""

import random
from collections.abc import Callable, Collection, Mapping

ASKED = "Answer with one short calculation that ends in the result."
NAMES = ("Ann", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo")
THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pencils", "shells", "stamps", "tickets")

# text, largest a, b and c, and the answer; a is always larger than b + c
KINDS: tuple[tuple[str, Callable[[int, int, int], int]], ...] = (
    ("{name} has {a} {thing} and finds {b} more. How many {thing} does {name} have now?", lambda a, b, c: a + b),
    ("{name} had {a} {thing} and gave {b} of them away. How many {thing} are left?", lambda a, b, c: a - b),
    ("A box holds {b} {thing}. How many {thing} are in {c} boxes?", lambda a, b, c: b * c),
    ("{name} has {a} {thing}. {other} has {b} fewer. How many {thing} does {other} have?", lambda a, b, c: a - b),
    (
        "{name} had {a} {thing}, lost {b} of them and then bought {c}. How many {thing} does {name} have now?",
        lambda a, b, c: a - b + c,
    ),
    (
        "{name} has {b} bags with {c} {thing} in each, and {a} {thing} more. How many {thing} is that together?",
        lambda a, b, c: b * c + a,
    ),
    (
        "{name} has {a} {thing} and {other} has {b} more than {name}. How many {thing} do they have together?",
        lambda a, b, c: a + a + b,
    ),
    (
        "There were {a} {thing} in a shop. {b} were sold in the morning and {c} after noon. How many are left?",
        lambda a, b, c: a - b - c,
    ),
)


def problems(n: int, *, seed: int, apart_from: Collection[str] = ()) -> list[Mapping[str, str]]:
    """`n` different ones, none of whose questions is in `apart_from`: question and answer."""
    draw, found = random.Random(f"word problems {seed}"), {question: "" for question in apart_from}
    made: list[Mapping[str, str]] = []
    while len(made) < n:
        text, result = KINDS[len(made) % len(KINDS)]
        name, other = draw.sample(NAMES, 2)
        b, c = draw.randint(2, 12), draw.randint(2, 9)
        a = b + c + draw.randint(1, 30)
        question = text.format(name=name, other=other, thing=draw.choice(THINGS), a=a, b=b, c=c)
        if question in found:
            continue
        found[question] = str(result(a, b, c))
        made.append({"question": f"{question} {ASKED}", "answer": found[question]})
    return made
