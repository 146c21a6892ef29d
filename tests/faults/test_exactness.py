"""Every token is booked once; in full: ``python -m tests.faults.exactness``."""

from pathlib import Path

import pytest

from tests.faults.exactness import run


@pytest.mark.timeout(280)
async def test_what_the_upstream_billed_is_what_the_log_and_the_read_model_say(tmp_path: Path) -> None:
    """A piece of a real hour's traffic with refusals, broken streams, clients that leave and gateways that are killed."""
    report = await run(240, kills=2, seed=1, directory=tmp_path)
    assert report.differences == []
    assert report.booked["measured"] > 100
    assert report.answers["402"] > 0  # the tight budget was exhausted
    assert set(report.answers) >= {"200", "left"}
