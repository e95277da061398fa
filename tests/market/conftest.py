import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data: $FLAGTRL_SHARED, or `shared` beside the repository."""
    root = Path(os.environ.get("FLAGTRL_SHARED") or Path(__file__).parents[3] / "shared")
    if not (root / "PROVENANCE.md").exists():
        pytest.skip(f"shared test data is not at {root}; set FLAGTRL_SHARED to run this test")
    return root
