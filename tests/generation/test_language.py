"""The language filter: sure other languages are dropped, what cannot be told stays and is counted."""

import sys

import pytest

from tests.generation.asking import generate, rows
from tests.instruments.endpoint import Action
from tutelage.errors import ConfigError
from tutelage.generation.select import language as step

TEXTS = [
    "The train leaves at nine, so we should be at the station by half past eight.",
    "Der Zug f\u00e4hrt um neun Uhr ab, also sollten wir um halb neun am Bahnhof sein.",
    "42",
    "Le train part \u00e0 neuf heures, donc il faut \u00eatre \u00e0 la gare \u00e0 huit heures et demie.",
    "def f(x):\n    return x + 1\n\nprint(f(3), f(4), f(5))",
    "Paris",
]


@pytest.fixture
def answering(server):
    server.script = lambda n, body: Action(text=TEXTS[int(body["messages"][-1]["content"].split()[2])])
    return server


@pytest.mark.parametrize(
    ("only", "kept", "undecided"),
    [("en", "0245", 2), (["de", "fr"], "12345", 3), ({"only": ["en"], "certain": 0.0}, "0245", 2)],
)
def test_answers_in_other_languages_are_dropped_and_undecided_ones_counted(only, kept, undecided, answering, tmp_path):
    made = generate(tmp_path, answering.url, n=6, select=[{"language": only}])
    assert "".join(row["messages"][0]["content"].split()[2] for row in rows(tmp_path)) == kept
    (dropped,) = (d for d in made.card.dropped if d.step == "language")
    assert dropped.undecided == undecided and dropped.n == 6 - len(kept)
    if "en" in str(only):
        assert dropped.reasons == {"is in de": 1, "is in fr": 1}
        assert dropped.examples[0]["about"].startswith("probability ") and "undecided" in str(made)


def test_an_unknown_code_is_refused_before_anything_is_sent(answering, tmp_path):
    with pytest.raises(ConfigError, match=r"language 'eng' is no code of ISO 639 that is known \(en\?\)"):
        generate(tmp_path, answering.url, select=[{"language": "eng"}])
    assert answering.seen == []


def test_without_the_library_the_message_says_what_to_install(answering, tmp_path, monkeypatch):
    step._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(ConfigError, match=r'needs py3langid; run: pip install "tutelage\[text\]"'):
        generate(tmp_path, answering.url, select=[{"language": "en"}])
    assert answering.seen == []
