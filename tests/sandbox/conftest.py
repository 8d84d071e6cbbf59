import os
import shutil
from collections.abc import AsyncIterator

import pytest
from tests.fakes.sandboxes import ORDINARY_UID, Installation, installed


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["root", "ordinary"])
def starter_uid(request: pytest.FixtureRequest) -> int:
    """Whom the launcher runs as: both, where the test is root; the user alone otherwise."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    if os.getuid() == 0:
        return 0 if request.param == "root" else ORDINARY_UID
    if request.param == "root":
        pytest.skip("needs root")
    return os.getuid()


@pytest.fixture
async def here(starter_uid: int, anyio_backend: str) -> AsyncIterator[Installation]:
    async with installed(starter_uid) as installation:
        yield installation
