"""What a run is held to, from what the configuration declares."""

from pathlib import Path

from bailiwick.governor.configuration import Agent, RunLimits
from bailiwick.governor.definition import Installation, define
from bailiwick.governor.runtime import Runtime
from bailiwick.governor.views import RunRequest
from bailiwick.kernel.ids import RunId


def test_no_link_is_followed_by_the_governor(tmp_path: Path) -> None:
    """The specification names the workspace as the configuration does: who made a link on the way, only the launcher can judge as it opens it."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "deployer").symlink_to("secret")
    agent = Agent(command=["/bin/true"], workspace="agents/../deployer", observe=False, limits=RunLimits())
    installation = Installation(
        trust_domain="example.org", agents={"a": agent}, hosts={}, approvers={}, credential_ttls={}, policies={},
        runtimes={"a": Runtime(["/bin/true"], [])}, directory=tmp_path, trust_bundle="x",
    )  # fmt: skip
    found = define(RunId("run-1"), RunRequest(agent="a", task="t"), installation)
    assert found.spec.workspace == found.workspace == str(tmp_path / "deployer")
