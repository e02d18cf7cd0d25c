"""A report with everything in it, whose texts a test chooses."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.evaluation.test_stats import sequence
from tutelage.evaluation.explorer import Expected, ExploredText, Explorer, Place
from tutelage.evaluation.show import Candidate, ModelView, Prompt, PromptView, Shown
from tutelage.evaluation.slices import Hard, Slice
from tutelage.evaluation.transfer import HELD_OUT, Cost, Reliability, Transfer, transfer_of
from tutelage.reports.listed import Listed
from tutelage.reports.report import Report

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


def parts_of(measured: Transfer, *, text: str, kinds: tuple[str, ...] = ("source",)) -> Transfer:
    """The same with a reliability curve, slices and hardest inputs, whose names and excerpts are `text`."""
    result = measured.sets[HELD_OUT]
    n = tuple(10 * i for i in range(15))
    curve = Reliability(
        n=n, confidence=tuple((i + 0.5) / 15 for i in range(15)), correct=tuple(i / 15 for i in range(15))
    )
    slices = tuple(
        Slice(
            kind=kind,
            name=f"{text} {i}",
            n_sequences=12,
            n_tokens=400 * i + 7,
            estimates=result.estimates,
            example=text,
        )
        for kind in kinds
        for i in range(3)
    )
    hard = Hard(row=3, text=text, values={m: {"kl_to_teacher": 1.5, "held_out_loss": 4.25} for m in MODELS})
    held_out = replace(
        result,
        reliability={m: curve for m in MODELS},
        slices=slices,
        worst=(2, 0),
        hardest=(hard,),
    )
    return replace(measured, sets={**measured.sets, HELD_OUT: held_out})


def explorer_of(text: str, *, students: tuple[str, ...] = ("student",), n_texts: int = 3) -> Explorer:
    """Texts of six tokens that all read `text`; the first is given, the others disagree from 0 nats to 3."""
    kl = (0.0, 0.2, 0.7, 1.4, 3.0)
    places = tuple(
        Place(
            at=n + 1,
            kl_nats={name: kl[n] + i for i, name in enumerate(students)},
            expected={
                name: Expected(
                    ids=(7, 8, 9), probabilities=(0.5, 0.25, 0.0), true_probability=0.25 if n else 0.00004,
                    true_rank=2 if n else 11,
                )
                for name in ("teacher", *students)
            },
        )
        for n in range(5)
    )  # fmt: skip
    one = ExploredText(
        row=5, kind="hardest", kl_nats={name: 1.06 for name in students}, ids=(6, 3, 8, 8, 8, 8), pieces=(text,) * 6,
        places=places,
    )  # fmt: skip
    return Explorer(
        teacher="teacher", students=students, set_name="held_out", n_rows=40, texts=(one,) * n_texts,
        tokens={3: text, 7: text, 8: f"{text} right", 9: text},
    )  # fmt: skip


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
            transfer=parts_of(measured, text=text),
            explorer=explorer_of(text),
            tables=[Listed(title=text, note=text, head=["", text], rows=[[text, text]])],
            cautions=[text],
            shown=Shown(teacher="teacher", prompts=(view,)),
            metrics=metrics(),
            recipe=text,
            provenance={"data": text, text: [text]},
        )

    return make
