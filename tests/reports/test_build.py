"""The page: one file, nothing loaded, nothing injected (fault D9)."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.evaluation.test_stats import sequence
from tests.reports.conftest import MODELS, metrics, transfer
from tutelage.evaluation.transfer import transfer_of
from tutelage.reports import figures
from tutelage.reports.build import _series, build_report, write_report
from tutelage.reports.figures import loss_curves, smoothed
from tutelage.reports.report import Report
from tutelage.reports.table import table_of, to_html, to_markdown

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><svg/onload=alert(1)//",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "<a href=javascript:alert(1)>x</a>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import '//evil.example/x.css';</style>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/>",
    "<form action=//evil.example><input name=q></form>",
    "<object data=//evil.example></object>",
    "<math><mtext></mtext><mglyph><style><img src=x onerror=alert(1)>",
    "<!--><script>alert(1)</script-->",
    "--><script>alert(1)</script><!--",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?xml version='1.0'?><x/>",
    "{{ 7*7 }}{% raw %}",
    "${alert(1)}`alert(1)`",
    "&lt;script&gt;&#60;script&#62;",
    "\x00<scr\x00ipt>",
    "\x1b]8;;http://evil.example\x07click\x1b]8;;\x07",
    "\u2028\u2029</script>",
    "\u202egnp.exe\u2066",
    "\ud800<script>",
    "| a | b |\n|---|---|\n[x](http://evil.example) ![](//evil.example/x.png)",
    "http://evil.example www.evil.example",
]


class _Skeleton(HTMLParser):
    """Tags with their attributes, in order; the text is collected apart."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.tags.append(("!--", ((data, None),)))

    def handle_decl(self, decl: str) -> None:
        self.tags.append(("!", ((decl, None),)))

    def handle_pi(self, data: str) -> None:
        self.tags.append(("?", ((data, None),)))


def skeleton(page: str) -> _Skeleton:
    parser = _Skeleton()
    parser.feed(page)
    parser.close()
    return parser


def undrawn(report: Report) -> Report:
    """The same without what has to be drawn: drawing is slow, and its texts have a test of their own."""
    held_out = replace(report.transfer.sets["held_out"], slices=(), worst=(), reliability={})
    transfer = replace(report.transfer, sets={**report.transfer.sets, "held_out": held_out})
    return replace(report, metrics=(), transfer=transfer)


@pytest.fixture(scope="module")
def harmless(report_with):
    return skeleton(build_report(undrawn(report_with("harmless"))))


def _renderings(transfer) -> tuple[str, str]:
    return build_report(Report(run="r", transfer=transfer)), to_html(table_of(transfer))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_adds_a_tag_an_attribute_or_an_address_to_the_page(report_with, harmless, payload):
    found = skeleton(build_report(undrawn(report_with(payload))))
    assert found.tags == harmless.tags
    text = "".join(found.text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_a_text_of_the_explorer_cannot_end_its_data(report_with):
    payload = "</script><script>alert(1)</script><!--\u2028&"
    page = build_report(undrawn(report_with(payload)))
    (data,) = re.findall(r'<script type="application/json" id="explored">(.*?)</script>', page, re.DOTALL)
    assert not set("<>&\u2028") & set(data)
    assert payload.replace("\u2028", "\\u2028") in json.loads(data)["tokens"]
    assert len(scripts(page)) == 1


def test_no_name_of_a_slice_adds_anything_to_a_drawing(report_with):
    def drawn(names: list[str]) -> list[tuple[str, ...]]:
        result = report_with("x").transfer.sets["held_out"]
        slices = tuple(replace(result.slices[0], name=name) for name in names)
        (panel,) = figures.slices(replace(result, slices=slices), metric="kl_to_teacher", shown=MODELS, models=MODELS)
        parsed = skeleton(panel.svg)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", "".join(parsed.text))
        return [(tag, *(name for name, _ in attributes)) for tag, attributes in parsed.tags]

    assert drawn(PAYLOADS) == drawn(["harmless"] * len(PAYLOADS))


def test_a_hostile_model_name_adds_nothing_to_page_fragment_or_markdown():
    def named(name: str):
        return transfer_of(
            {"held_out": {"teacher": [sequence(0), sequence(1)], name: [sequence(0), sequence(1)]}}, None
        )

    page, fragment = (skeleton(made).tags for made in _renderings(named("plain")))
    for payload in PAYLOADS:
        assert [skeleton(made).tags for made in _renderings(named(payload))] == [page, fragment]
        markdown = to_markdown(table_of(named(payload)))
        assert skeleton(markdown).tags == []
        assert "://" not in markdown
        head = markdown.splitlines()[0]
        assert len(re.findall(r"(?<!\\)\|", head)) == 4


def scripts(page: str) -> list[str]:
    """What stands in the page's script elements that run."""
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


def test_the_page_loads_nothing_and_runs_only_the_script_whose_hash_its_policy_names(report_with):
    page = build_report(report_with("harmless"))
    parsed = skeleton(page)
    policy = dict(
        next(a for tag, a in parsed.tags if tag == "meta" and ("content" in dict(a)) and "http-equiv" in dict(a))
    )
    (script,) = scripts(page)
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["content"] == (
        f"default-src 'none'; script-src 'sha256-{known}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert [dict(a) for tag, a in parsed.tags if tag == "script"] == [
        {"type": "application/json", "id": "explored"},
        {},
    ]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|fetch|import", script)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"link", "img", "iframe", "object", "embed", "form", "base", "image", "video", "audio"}
    attributes = [(name, value or "") for _, pairs in parsed.tags for name, value in pairs]
    assert all(value.startswith("#") for name, value in attributes if name in {"href", "src", "xlink:href", "action"})
    assert not any(name.startswith("on") for name, _ in attributes)
    assert "://" not in page
    assert not re.search(r"url\((?!#)|@import", page)


def test_the_page_holds_every_number_of_the_table_and_every_command(report_with):
    report = report_with("two words")
    text = "".join(skeleton(build_report(report)).text)
    for row in table_of(report.transfer).rows:
        assert row.label in text
        assert all(cell.value in text and cell.error in text for cell in row.cells)
    for command in (
        "tutelage evaluate 'two words'",
        "tutelage show 'two words' 'two words'",
        "tutelage train 'two words'",
    ):
        assert command in text


def test_no_two_models_of_a_page_have_colours_that_look_alike():
    several = _series(["teacher", "control", "argmax", "cached", "co", "hard", "soft"])
    assert several == {
        "teacher": "teacher", "control": "control", "argmax": "1", "cached": "2", "co": "3", "hard": "4", "soft": "6"
    }  # fmt: skip
    assert _series(["student", "small"]) == {"student": "student", "small": "2"}


def test_the_same_report_gives_the_same_bytes(report_with, tmp_path):
    first = write_report(tmp_path / "a.html", report_with("x")).read_bytes()
    assert write_report(tmp_path / "b.html", report_with("x")).read_bytes() == first


def test_a_report_without_prompts_metrics_control_or_teacher_still_builds():
    scores = [sequence(i) for i in range(4)]
    page = build_report(Report(run="r", transfer=transfer_of({"held_out": {"student": scores}}, None)))
    assert "Held-out loss" in page
    assert "Dark knowledge" not in page


def test_curves_show_each_term_once_with_the_models_that_have_it():
    panels = {p.term: p for p in loss_curves(metrics(), models=("teacher", "student", "control"))}
    assert panels.keys() == {"forward_kl", "cross_entropy"}
    assert panels["cross_entropy"].models == ("student", "control")
    assert panels["forward_kl"].has_held_out
    assert "var(--m1)" in panels["forward_kl"].svg
    assert "var(--m2)" not in panels["forward_kl"].svg
    assert not re.search(r"#0[0-9a-f]{3}01|xmlns|<style|DOCTYPE", panels["cross_entropy"].svg)


def test_a_value_that_is_not_a_number_is_left_out_of_a_curve():
    rows = [{"step": i, "student/forward_kl": v} for i, v in enumerate([1.0, float("nan"), None, float("inf"), 2.0])]
    (panel,) = loss_curves(rows, models=("student",))
    assert panel.x_label == "step"


def test_the_moving_mean_keeps_a_line_and_its_ends():
    line = [float(i) for i in range(100)]
    assert smoothed(line) == pytest.approx(line)


def test_the_headline_tells_size_and_agreement(report_with):
    page = build_report(report_with("x"))
    assert "With 74% of the teacher’s parameters, the student agrees with the teacher’s first choice on" in page


def test_the_transfer_of_the_fixture_is_sane():
    assert set(transfer().sets) == {"held_out", "out_of_domain"}


def test_a_sampled_cache_has_a_curve_of_its_training_and_one_of_the_held_out_divergence(report_with):
    steps = [
        {"step": i, "tokens": 64 * i, "model": "student", "student/soft_cross_entropy": 5.0 / i} for i in (1, 2, 3)
    ]
    held_out = {"step": 2, "tokens": 128, "model": "student", "student/held_out/forward_kl": 0.5}
    panels = {p.term: p for p in loss_curves([*steps, held_out], models=("student",))}
    assert {term: p.has_held_out for term, p in panels.items()} == {"soft_cross_entropy": False, "forward_kl": True}
    page = build_report(replace(report_with("harmless"), metrics=[*steps, held_out]))
    assert "Cross-entropy on a stored sample of the teacher" in page
    assert "Forward KL to the teacher" in page
