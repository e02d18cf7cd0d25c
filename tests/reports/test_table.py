"""The table and its sentences: honest whoever wins, silent about what is noise (fault F4)."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tests.evaluation.test_slices import rows_of_one_level
from tests.evaluation.test_stats import sequence
from tests.reports.conftest import MODELS, transfer
from tutelage.evaluation.positions import INVERSE_TEMPERATURES
from tutelage.evaluation.transfer import transfer_of
from tutelage.reports import headline, numbers
from tutelage.reports.listed import Listed
from tutelage.reports.table import _cell, table_of, to_html, to_markdown, to_rich
from tutelage.reports.text import printed
from tutelage.types import Estimate


def sentence(start: str, **changes) -> str:
    return next(s for s in headline.sentences(transfer(**changes)) if s.startswith(start))


def test_the_winner_of_the_held_out_loss_is_named_whoever_it_is():
    won = sentence("Held-out loss", student=40.0, control=41.0)
    assert "student is lower than the control by 0.095 ± " in won
    lost = sentence("Held-out loss", student=42.0, control=41.0)
    assert "control is lower than the student by 0.105 ± " in lost
    assert "plain fine-tuning fits this text better" in lost


def test_a_difference_inside_the_noise_has_no_winner():
    same = [replace(sequence(i, nll=40.0 + i % 5), kl_nats=5.0 + i % 3) for i in range(12)]
    other = [replace(sequence(i, nll=40.0 + (i + 2) % 5), kl_nats=5.0 + (i + 1) % 3) for i in range(12)]
    found = transfer_of({"held_out": {"teacher": same, "student": same, "control": other}}, "teacher")
    said = " ".join(headline.sentences(found))
    assert said.count("student and control are not shown to differ") == 2
    assert not any(cell.best for row in table_of(found).rows for cell in row.cells)


def test_a_model_against_itself_is_never_best():
    scores = [sequence(i) for i in range(12)]
    found = transfer_of({"held_out": {"teacher": scores, "student": scores, "control": scores}}, "teacher")
    assert not any(cell.best for row in table_of(found).rows for cell in row.cells)
    assert "not shown to differ" in headline.sentences(found)[0]


def test_imitation_is_judged_by_kl_and_not_by_the_loss():
    assert "the student is closer to the teacher" in sentence("Imitation", student=42.0, control=41.0)
    assert "the control is closer to the teacher" in sentence("Imitation", kl=(13.0, 10.0))


def test_what_was_lost_compares_the_domains():
    assert sentence("What was lost", apart=8.0).endswith("it lost more there.")
    assert sentence("What was lost", apart=-5.0).endswith("it lost less there.")
    assert sentence("What was lost", apart=0.0).endswith("no difference beyond noise.")


def test_the_better_trained_model_is_marked_and_the_teacher_never():
    rows = {(r.section, r.label): r for r in table_of(transfer()).rows}
    loss = rows["Held-out text", "Held-out loss"]
    assert [cell.best for cell in loss.cells] == [False, False, True, False]
    agreement = rows["Held-out text", "Top-1 agreement"]
    assert agreement.better == "higher"
    assert not any(cell.best for cell in agreement.cells)
    assert [cell.value for cell in rows["Cost", "Training"].cells] == ["", "", "118 s", ""]


def test_every_estimate_is_shown_with_its_standard_error():
    for row in table_of(transfer()).rows:
        measured = [c for c in row.cells if row.section != "Cost" and c.value not in ("0", "100")]
        assert all(cell.error for cell in measured)


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_fits_and_keeps_each_number_on_its_line(width):
    text = printed(lambda _: to_rich(table_of(transfer()), width=width))
    from rich.console import Console

    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(to_rich(table_of(transfer()), width=width))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "Held-out loss" in text
    (loss, _) = [line for line in lines if line.startswith("Held-out loss")]
    assert loss.count("±") == 4


def test_markdown_and_html_have_a_column_a_model():
    table = table_of(transfer())
    assert to_markdown(table).splitlines()[0] == "|  | teacher | student before | student | control |"
    assert to_html(table).count("<th>") == len(MODELS) + 1


def test_what_is_weakest_and_miscalibrated_is_said_only_beyond_noise():
    def said(*, extra: float, temperature: float) -> str:
        rng = np.random.default_rng(4)
        scores = []
        for s in rows_of_one_level(rng, extra=extra, n=40):
            slopes = tuple(40 * (b - 1 / temperature) for b in INVERSE_TEMPERATURES)
            losses = tuple(80 + 20 * (b - 1 / temperature) ** 2 for b in INVERSE_TEMPERATURES)
            noise = float(rng.normal(0, 0.5))
            scores.append(
                replace(s, heated_nats=losses, heated_slopes=tuple(x + noise for x in slopes), nll_nats=losses[3])
            )
        found = transfer_of({"held_out": {"teacher": scores, "student": scores}}, "teacher")
        return " ".join(headline.sentences(found))

    loud, quiet = said(extra=0.6, temperature=1.6), said(extra=0.0, temperature=1.0)
    assert "Weakest, in KL to the teacher above its mean: positions 256-1,023 (+0." in loud
    assert "the student is too sure of itself: dividing its logits by 1.6" in loud
    assert "Weakest" not in quiet
    assert "Calibration" not in quiet


def test_the_table_shows_what_one_needs_first_and_all_of_it_on_demand():
    few, every = (len([r for r in table_of(transfer(), every=e).rows if r.section == "Held-out text"]) for e in (0, 1))
    assert (few, every) == (5, 6)  # the fixture's sequences lack the other sums


@pytest.mark.parametrize(
    ("unit", "value", "shown"), [("share", 1.0, "100"), ("correlation", 1.0, "1"), ("nats", 0.0, "0")]
)
def test_what_is_exact_is_shown_without_decimals(unit, value, shown):
    assert _cell(Estimate(value=value, stderr=0.0, n=5, unit=unit), 3, best=False).value == shown


def test_unscored_sequences_are_said_and_shown():
    broken = [replace(sequence(i), n_unscored=int(i == 0)) for i in range(12)]
    scores = [sequence(i) for i in range(12)]
    found = transfer_of({"held_out": {"teacher": scores, "student": broken, "control": scores}}, "teacher")
    assert "student: 1 of 12 sequences have no finite score and are left out." in headline.sentences(found)
    (row,) = [r for r in table_of(found).rows if r.label == "Unscored sequences"]
    assert [cell.value for cell in row.cells] == ["0", "1", "0"]


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (Estimate(value=3.27941, stderr=0.0414, n=9, unit="nats"), ("3.279", "0.041")),
        (Estimate(value=0.57214, stderr=0.0083, n=9, unit="share"), ("57.21", "0.83")),
        (Estimate(value=12345.6, stderr=210.0, n=9), ("12,346", "210")),
        (Estimate(value=2.0, stderr=math.inf, n=1), ("2.00", "?")),
    ],
)
def test_a_number_shows_two_digits_of_its_error(found, shown):
    assert numbers.estimate(found, n_decimals=numbers.decimals(found)) == shown


def test_sizes_and_times_read_as_people_say_them():
    assert (numbers.count(134_515_008), numbers.count(999)) == ("134.5 M", "999")
    assert (numbers.size(538_060_032), numbers.size(12)) == ("538 MB", "12 B")
    assert (numbers.seconds(3.21), numbers.seconds(118), numbers.seconds(3000)) == ("3.2 s", "118 s", "50 min")
    assert (numbers.compact(20000), numbers.compact(1.5e6), numbers.compact(0)) == ("20k", "1.5M", "0")


def test_a_long_name_is_folded_and_never_cut():
    """Settings of a sweep differ at the end of their names."""
    names = [f"training.learning_rate=0.00{n} student.layers=12 control" for n in (1, 2)]
    table = Listed(title="", note="", head=["", "Beaten by"], rows=[[name, name] for name in names])
    written = io.StringIO()
    Console(width=40, file=written).print(table.to_rich())
    shown = "".join(written.getvalue().split())
    assert "…" not in shown and "0.001" in shown and "0.002" in shown
