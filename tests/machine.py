"""What a machine may lack: said clearly, and a failure in CI."""

from __future__ import annotations

import os

import pytest

CI = os.environ.get("CI") == "true"


def missing(what: str, how: str) -> None:
    """A tool of the machine is not there: a failure in CI, else a skip that says how to get it."""
    message = f"{what} is missing: {how}"
    if CI:
        pytest.fail(message)
    pytest.skip(message)
