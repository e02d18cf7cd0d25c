"""Each known historic bug, put into a copy of src, is noticed by the oracle that is there for it."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.mutants.register import MUTANTS
from tests.mutants.runner import ROOT, UNCHANGED, UNCHANGED_PLAIN, patched

TESTS_FAILED = 1  # pytest's status; 2 and above are a broken harness, a missing test, a package that cannot be imported


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    """What the oracles said of the mutants that were selected (with -k, say): {mutant id: {"exit", "output"}}."""
    out = tmp_path_factory.mktemp("mutants") / "results.json"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OPENBLAS_NUM_THREADS": "1"}
    asked = [item.callspec.params["mutant"].id for item in request.session.items if "mutant" in _parameters(item)]
    command = [sys.executable, "-m", "tests.mutants.runner", str(out), *asked]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return json.loads(out.read_text())


def _parameters(item):
    return item.callspec.params if hasattr(item, "callspec") else {}


def test_every_mutant_still_changes_exactly_one_line():
    for mutant in MUTANTS:
        assert mutant.old != mutant.new
        compile(patched(mutant), mutant.file, "exec")


def test_every_mutant_has_its_own_id():
    assert [i for i, n in Counter(m.id for m in MUTANTS).items() if n > 1] == []


@pytest.mark.slow
@pytest.mark.parametrize("way", [UNCHANGED, UNCHANGED_PLAIN])
def test_an_oracle_of_every_room_passes_on_the_unchanged_package(way, results):
    assert results[way]["exit"] == 0, results[way]["output"][-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.id)
def test_the_named_oracle_kills_the_mutant(mutant, results):
    result = results[mutant.id]
    assert result["exit"] == TESTS_FAILED, f"{mutant.what}: status {result['exit']}\n{result['output'][-3000:]}"
