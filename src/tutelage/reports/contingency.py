"""Who is right where the other is wrong, and whether both err alike, as a table."""

from tutelage.evaluation.contingency import TWO_CHOICES, Contingency, SameWrong
from tutelage.evaluation.tasks import TaskResult
from tutelage.reports.listed import DECIDED, Listed, marked, percent
from tutelage.reports.table import model_name

TITLE = "Right where the other is wrong"
HEAD = (
    "", "Both right, %", "Only the first, %", "Only the second, %", "Neither, %", "Same wrong answer, %", "By chance, %"
)  # fmt: skip


def listed(result: TaskResult | None) -> Listed | None:
    """None where no task was measured."""
    if result is None or not result.contingencies:
        return None
    return Listed(title=TITLE, note=note(result), head=HEAD, rows=rows(result))


def note(result: TaskResult) -> str:
    """How it was measured."""
    k = result.choices
    chance = (
        f"1 of the {k - 1} wrong choices"
        if k is not None and k > 2
        else "their wrong answers shuffled among the prompts"
    )
    return (
        f"{result.n_prompts:,} prompts, 95% intervals over prompts. {DECIDED} after the first cell: one of the "
        "two is right more often (exact sign test; paired shares where a prompt has several answers); after the same "
        "wrong answer, a share of the prompts that both got "
        f"wrong: more often than {chance}. Both corrected for the number of rows (Holm)."
        f"{f' The same wrong answer is not compared: {TWO_CHOICES}.' if k == 2 else ''}"
    )


def rows(result: TaskResult) -> list[list[str]]:
    """A row of cells for each pair."""
    return [_row(one) for one in result.contingencies]


def _row(one: Contingency) -> list[str]:
    return [
        marked(f"{model_name(one.first)} – {model_name(one.second)}", one.difference.decided),
        *(percent(cell) for cell in (one.both, one.only_first, one.only_second, one.neither)),
        *_alike(one.same_wrong),
    ]


def _alike(found: SameWrong | None) -> tuple[str, str]:
    if found is None:
        return "–", "–"
    return marked(percent(found.share), found.decided), f"{100 * found.chance:.1f}"
