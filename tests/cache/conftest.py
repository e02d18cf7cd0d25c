"""One place with labelled caches for the session."""

import pytest

from tests.cache.labelled import Place


@pytest.fixture(scope="session")
def labelled_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Caches are made when first asked for."""
    return Place(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def place(labelled_place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The same with its home, where the tokens of the rows are."""
    monkeypatch.setenv("TUTELAGE_HOME", str(labelled_place.home))
    return labelled_place
