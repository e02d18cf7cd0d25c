"""Pages that are made from the code: complete, fresh, and refused when stale."""

import json
import re
import subprocess
import sys
from pathlib import Path

import tutelage
from tutelage import _docs, errors
from tutelage.cli import app
from tutelage.losses.names import DIVERGENCES
from tutelage.recipe.problems import all_fields

ROOT = Path(__file__).parents[1]


def test_the_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tutelage._docs", "--check"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"run: python -m tutelage._docs\n{done.stdout}{done.stderr}"


def test_every_field_divergence_code_and_verb_is_documented() -> None:
    recipe, codes, cli = _docs.recipe_page(), _docs.errors_page(), _docs.cli_page()
    for path in all_fields():
        assert f"| `{path.rpartition('.')[2]}` |" in recipe, path
    for name in DIVERGENCES:
        assert f"| `{name}` |" in recipe
    for code in errors.CODES:
        assert f"| `{code}` |" in codes
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"## tutelage {command.callback.__name__}\n" in cli


def test_every_public_name_stands_in_the_reference_of_the_library() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    known = {name for name in tutelage.__all__ if name not in ("__version__", "cache", "errors", "losses")}
    assert known <= set(re.findall(r"^\.\. auto\w+:: (\w+)$", page, flags=re.M))
    found = set(re.findall(r"^\.\. auto\w+:: tutelage\.losses\.(\w+)$", page, flags=re.M))
    assert set(tutelage.losses.__all__) - {"DIVERGENCES"} == found


def test_every_field_has_a_meaning_and_its_range() -> None:
    page = _docs.recipe_page()
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.*) \|$", page, flags=re.M)
    assert len(rows) > 60
    assert [name for name, _, _, meaning in rows if not meaning.strip()] == []
    table = {name: (kind, default) for name, kind, default, _ in rows}
    assert table["ema"] == ("number in (0, 1)", "`null`")
    assert table["batch_tokens"] == ("whole number >= 1", "`8192`")
    assert table["student"] == ("Student", "`null`")
    assert table["data"] == ("Data", "**required**")


def test_codes_stand_with_the_exit_code_that_the_source_raises() -> None:
    page = _docs.errors_page()
    assert re.search(r"^\| `CONFIG` \| .* \| error, exit 2 \|$", page, flags=re.M)
    assert re.search(r"^\| `KEY_IN_CONFIG` \| .* \| error, exit 2 \|$", page, flags=re.M)
    assert " – |" not in page, "a code that never appears, or whose appearance is not found"
    assert re.search(r"^\| `DISK_FULL` \| .* \| error, exit 6.* \|$", page, flags=re.M)


def test_the_shipped_schema_is_that_of_this_version() -> None:
    shipped = json.loads((ROOT / "src/tutelage/recipe.schema.json").read_text())
    assert shipped["properties"]["training"]
    assert shipped["additionalProperties"] is False
