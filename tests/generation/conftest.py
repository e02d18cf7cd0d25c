"""Endpoints that serve for one test, and back-off that does not take the tests' time."""

from collections.abc import Iterator

import pytest

from tests.instruments.endpoint import Endpoint
from tutelage.generation import work


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "FIRST_WAIT_S", 0.002)


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running
