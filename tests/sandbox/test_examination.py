"""The probe as the launcher holds it: what does not answer has not shown that anything holds, and nothing of it is there when the agent is."""

import os
import signal
from pathlib import Path

import pytest

from bailiwick.sandbox.examination import Examination
from bailiwick.sandbox.probe import Expected

pytestmark = pytest.mark.anyio

EXPECTED = Expected(uid=1, open_files=1, disk_bytes=1, state="/x", command="x", path="/bin", groups=[], trees=[])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_probe_that_dies_is_a_finding() -> None:
    """Killed before it answers, it is `probe` and does not hold; it is reaped, and what it cost is given back."""
    before = descriptors()
    examination = Examination.prepare(EXPECTED, separate=False)
    os.kill(examination.pid, signal.SIGKILL)
    examined = await examination.answer()
    assert [(finding.check, finding.held) for finding in examined.findings] == [("probe", False)]
    await examination.gone()
    await examination.gone()
    examination.dismiss()
    assert examination.is_gone()
    assert descriptors() == before


async def test_a_probe_that_may_not_enter_says_so() -> None:
    """What goes wrong on the way in is the finding's detail."""
    examination = Examination.prepare(EXPECTED, separate=False)
    reading, writing = os.pipe()
    examination.begin(reading)  # no process at all
    (finding,) = (await examination.answer()).findings
    assert (finding.check, finding.held) == ("probe", False)
    assert "entry into namespaces" in finding.detail
    await examination.gone()
    os.close(reading)
    os.close(writing)


async def test_one_that_was_never_asked_is_ended() -> None:
    """A sandbox that is not made leaves no probe waiting."""
    before = descriptors()
    examination = Examination.prepare(EXPECTED, separate=False)
    pid = examination.pid
    examination.dismiss()
    await examination.gone()
    assert not Path(f"/proc/{pid}").exists()
    assert descriptors() == before
