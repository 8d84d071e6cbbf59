"""The governor as a whole, as far as it needs no process: who may ask for what, and which worker may speak for which run."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.governor.test_dispatch import definition

from bailiwick.critic.enforcement import RedeemHold, ReportUsage, Usage
from bailiwick.governor.configuration import Agent
from bailiwick.governor.definition import Installation
from bailiwick.governor.lifecycle import RunState
from bailiwick.governor.live import Live
from bailiwick.governor.runtime import Runtime
from bailiwick.governor.service import Governor
from bailiwick.governor.views import Operator, RunRequest
from bailiwick.kernel import limits
from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.channel import Received
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import Conflict, Forbidden, NotFound
from bailiwick.kernel.ids import RunId
from bailiwick.kernel.layout import Layout

pytestmark = pytest.mark.anyio

OPERATOR = Operator(name="ana", roles=frozenset({"operator"}))
ADMIN = Operator(name="root", roles=frozenset({"admin"}))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def governor(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Governor]:
    layout = Layout(tmp_path)
    layout.governor.mkdir()
    layout.sockets.mkdir()
    installation = Installation(
        trust_domain="example.org",
        agents={"deployer": Agent(command=["true"]), "watched": Agent(command=["true"], observe=True)},
        hosts={},
        approvers={},
        credential_ttls={},
        policies={},
        runtimes={name: Runtime(["/usr/bin/true"], []) for name in ("deployer", "watched")},
        directory=tmp_path,
        trust_bundle="",
    )
    accounts = Accounts.for_machine(uid=0, gid=0, workers=2)
    governor = Governor(installation, layout, accounts, SystemClock(), configuration="bailiwick.yaml")
    asked: list[Any] = []

    async def record(live: Live, kind: str, **body: Any) -> int:
        asked.append(kind)
        return 1

    class Tasks:
        def start_soon(self, *_: Any) -> None:
            return

    governor._dispatch.record = record  # type: ignore[method-assign]
    governor._reading.refusals = lambda run: (0, 0)  # type: ignore[method-assign]
    governor._tasks = Tasks()  # type: ignore[assignment]
    yield governor
    governor._runs.close()
    governor._signoffs.close()


async def test_observing_a_declared_agent_is_for_who_may_change_its_boundary(governor: Governor) -> None:
    """Observe forwards what the boundary would hold: an operator may not switch it off for a run, an admin may, and so may the configuration."""
    with pytest.raises(Forbidden, match="observe: true"):
        await governor.request_run(RunRequest(agent="deployer", observe=True), OPERATOR)
    assert (await governor.request_run(RunRequest(agent="deployer", observe=True), ADMIN)).observe
    assert (await governor.request_run(RunRequest(agent="watched", observe=True), OPERATOR)).observe
    assert not (await governor.request_run(RunRequest(agent="deployer"), OPERATOR)).observe


async def test_a_command_of_ones_own_is_an_admins_where_the_launcher_is_root(governor: Governor) -> None:
    """It names directories that the launcher reads with rights the operator does not have."""
    with pytest.raises(Forbidden, match="admin"):
        await governor.request_run(RunRequest(command=["/usr/bin/true"], workspace="/root"), OPERATOR)
    assert (await governor.request_run(RunRequest(command=["/usr/bin/true"]), ADMIN)).agent == "command"


async def test_an_unknown_agent_is_named_with_those_that_are_known(governor: Governor) -> None:
    """Value, expectation, way out."""
    with pytest.raises(NotFound, match="'deploy' is not in the configuration; known: deployer, watched"):
        await governor.request_run(RunRequest(agent="deploy"), OPERATOR)


async def test_nothing_is_started_while_the_installation_stops(governor: Governor) -> None:
    """A run that nobody would end is not begun."""
    governor.stopping.set()
    with pytest.raises(Conflict, match="stopping"):
        await governor.request_run(RunRequest(agent="deployer"), OPERATOR)


async def test_a_worker_speaks_for_its_own_runs_only(governor: Governor) -> None:
    """A compromised worker cannot stop another run's clock, nor say what it used, nor redeem its grants."""
    view = await governor.request_run(RunRequest(agent="deployer"), OPERATOR)
    live = governor._dispatch.live[view.run]
    other = next(name for name in ("gateway-0", "gateway-1") if name != live.worker)
    told: Any = None
    report = Received(ReportUsage(run=view.run, used=Usage(calls=9), parked=1))
    await governor._from_worker(other, told, report)
    assert (live.used, live.parked) == (Usage(), 0)
    await governor._from_worker(live.worker, told, report)
    assert (live.used, live.parked) == (Usage(calls=9), 1)
    with pytest.raises(Forbidden, match="not served by"):
        governor._served(view.run, other)


async def test_a_paused_run_uses_no_grant_up(governor: Governor) -> None:
    """What was parked when the run was frozen is not forwarded because somebody signed it meanwhile; the grant stays."""
    view = await governor.request_run(RunRequest(agent="deployer"), OPERATOR)
    live = governor._dispatch.live[view.run]
    live.state = RunState.PAUSED
    told: Any = None
    with pytest.raises(Conflict, match="paused"):
        await governor._from_worker(live.worker, told, Received(RedeemHold(hold="hold-1", run=view.run, digest="d", policy="p")))


async def test_the_wall_clock_stands_still_for_sign_off_but_not_for_ever(governor: Governor) -> None:
    """Parked seconds do not count, up to a bound: an agent does not live on by asking."""
    live = Live(run=RunId("run-1"), agent="a", task="t", operator="ana", definition=definition(), state=RunState.RUNNING, worker="gateway-0", parked=1)
    await governor._count(live, 50.0)
    assert (live.elapsed_seconds, live.parked_seconds) == (0.0, 50.0)
    live.parked_seconds = limits.RUN_PARKED_SECONDS_MAX
    await governor._count(live, 50.0)
    assert live.elapsed_seconds == 50.0
    live.parked = 0
    await governor._count(live, 5.0)
    assert live.elapsed_seconds == 55.0
