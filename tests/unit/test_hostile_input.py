"""Files and texts of others, damaged on purpose: they are read, or refused in words; nothing else may come out.

`benchmarks/fuzz_parsers.py` reads a hundred thousand inputs of each kind.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.testing.hostile import READERS, Reader

readers = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)


@readers
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64))
@pytest.mark.filterwarnings("ignore")
def test_only_our_own_errors_come_out(reader: Reader, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.getbasetemp() / reader.name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    try:
        reader.read(reader.make(Random(seed)), folder)
    except HarnessError as error:
        assert str(error).strip()  # noqa: PT017


@readers
def test_a_number_stands_for_an_input(reader: Reader) -> None:
    """So that what was found once can be found again."""
    assert [reader.make(Random(seed)) for seed in range(20)] == [reader.make(Random(seed)) for seed in range(20)]


@readers
@pytest.mark.filterwarnings("ignore")
def test_both_happen(reader: Reader, tmp_path: Path) -> None:
    """Mutations that are never read would test the first check only."""
    read = 0
    for seed in range(400):
        try:
            reader.read(reader.make(Random(seed)), tmp_path)
        except HarnessError:
            continue
        read += 1
        if read == 3:
            break
    assert read == 3
