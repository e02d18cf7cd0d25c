"""A report with everything in it, whose texts a test chooses."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.evaluation.test_stats import sequence
from tutelage.evaluation.show import Candidate, ModelView, Prompt, PromptView, Shown
from tutelage.evaluation.transfer import Cost, Transfer, transfer_of
from tutelage.reports.build import Report

MODELS = ("teacher", "student_before", "student", "control")


def transfer(
    *, student: float = 40.0, control: float = 41.0, kl: tuple[float, float] = (10.0, 13.0), apart: float = 8.0
) -> Transfer:
    """Twelve sequences of ten tokens; sums of nats a sequence.  `apart`: how much worse the student is elsewhere."""

    def scores(level: float, divergence: float, *, tilt: float = 0.0):
        return [
            replace(
                sequence(i, nll=level + (i % 3) + tilt * (i % 2), agree=5 + i % 2), kl_nats=divergence + tilt * (i % 2)
            )
            for i in range(12)
        ]

    def a_set(extra: float):
        return {
            "teacher": scores(33.0, 0.0),
            "student_before": scores(80.0, 48.0),
            "student": scores(student + extra, kl[0], tilt=0.2),
            "control": scores(control + extra, kl[1], tilt=0.1),
        }

    costs = {name: Cost(parameters=10**6, parameter_bytes=2 * 10**6, rate_tok_per_s=812.4) for name in MODELS}
    costs["teacher"] = Cost(parameters=134_515_008, parameter_bytes=269_030_016, rate_tok_per_s=640.0)
    costs["student"] = Cost(parameters=99_000_000, parameter_bytes=198_000_000, rate_tok_per_s=812.4, training_s=118.0)
    return transfer_of({"held_out": a_set(0.0), "out_of_domain": a_set(apart)}, "teacher", costs=costs)


def metrics() -> list[dict[str, object]]:
    """Forty steps of student and control, with held-out losses on the way, as metrics.jsonl has them."""
    rows: list[dict[str, object]] = []
    for step in range(1, 41):
        shared = {"step": step, "tokens": step * 1024}
        fall = math.exp(-step / 10)
        rows.append({**shared, "model": "student", "student/forward_kl": 1 + fall, "student/cross_entropy": 4 + fall})
        rows[-1] |= {"student/total": 1.0, "student/learning_rate": 1e-3, "student/gradient_norm": 2.0}
        rows.append({**shared, "model": "control", "control/cross_entropy": 4.1 + fall})
        if step % 20 == 0:
            rows.append({**shared, "model": "student", "student/held_out/forward_kl": 1.1 + fall})
    return rows


@pytest.fixture(scope="session")
def report_with() -> Callable[[str], Report]:
    """A report with `text` in every field that comes from outside."""

    measured = transfer()

    def make(text: str) -> Report:
        answer = ModelView(candidates=(Candidate(token_id=3, text=text, probability=0.5),), kl_nats=0.1, generated=text)
        view = PromptView(
            prompt=Prompt(text=text, domain=text), models={name: answer for name in ("teacher", "student", "control")}
        )
        return Report(
            run=text,
            transfer=measured,
            shown=Shown(teacher="teacher", prompts=(view,)),
            metrics=metrics(),
            recipe=text,
            provenance={"data": text, text: [text]},
        )

    return make
