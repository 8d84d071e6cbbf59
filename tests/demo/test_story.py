import importlib.util
import os
import stat
from pathlib import Path

import pydantic
import pytest
import yaml

import bailiwick.app.configuration as configuration
from bailiwick.broker.configuration import CredentialConfiguration
from bailiwick.cli.demo import story
from bailiwick.cli.demo.world import Doors, Keys
from bailiwick.critic.boundary import compile_boundary
from bailiwick.critic.rules import ApproverGroup
from bailiwick.governor.configuration import Agent
from bailiwick.kernel.errors import CallerError

DOORS = Doors(model=1001, configuration=1002, stranger_http=1003, stranger_https=1004, stranger_udp=1005, journals=1006, ca="-----BEGIN CERTIFICATE-----\n")


def test_the_setting_is_written(keys: Keys, tmp_path: Path) -> None:
    """Configuration, workspace, authority and a token nobody else may read; no secret stands in the configuration."""
    setting = story.prepare(tmp_path, DOORS, keys, approver="ana")
    written = yaml.safe_load(setting.configuration.read_text())
    agent = written["agents"][setting.agent]
    assert written["hosts"]["config.internal"] == {"address": "127.0.0.1:1002", "ca": "ca.pem", "tls": True}
    assert written["approvers"]["oncall"]["operators"] == ["ana"]
    assert agent["command"][1:] == ["deployer.py", "{task}"]
    assert (setting.workspace / "deployer.py").read_bytes() == story._PROGRAM.read_bytes()
    token = tmp_path / "secrets" / "config-token"
    assert stat.S_IMODE(os.stat(token).st_mode) == 0o600
    assert token.read_text().strip() == setting.secrets["config-token"]
    assert setting.environment == {"DEMO_OPENAI_KEY": keys.model}
    for secret in setting.secrets.values():
        assert secret not in setting.configuration.read_text()
        assert secret not in repr(setting)


def test_it_may_be_prepared_again(keys: Keys, tmp_path: Path) -> None:
    """A second demo in the same directory starts from a clean workspace and the new keys."""
    story.prepare(tmp_path, DOORS, keys, approver="ana")
    (tmp_path / "deployer" / "summary.json").write_text("old")
    again = story.prepare(tmp_path, DOORS, Keys.fresh(), approver='b"o')
    assert [path.name for path in again.workspace.iterdir()] == ["deployer.py"]
    assert yaml.safe_load(again.configuration.read_text())["approvers"]["oncall"]["operators"] == ['b"o']


def test_the_product_takes_it(keys: Keys, tmp_path: Path) -> None:
    """Agent, credentials, boundary and policies are read by the rooms they are for, without a finding."""
    setting = story.prepare(tmp_path, DOORS, keys, approver="ana")
    written = yaml.safe_load(setting.configuration.read_text())
    agent = Agent.model_validate(written["agents"][setting.agent])
    credentials = pydantic.TypeAdapter(dict[str, CredentialConfiguration]).validate_python(written["credentials"])
    assert {use.use for use in agent.credentials} == set(credentials)
    groups = pydantic.TypeAdapter(dict[str, ApproverGroup]).validate_python(written["approvers"])
    policies = {path.name: path.read_text() for path in (tmp_path / "policies").iterdir()}
    boundary = compile_boundary(setting.agent, agent.boundary, agent.models, groups, policies=policies)
    assert boundary.hosts == ["config.internal"]
    assert "demo/production-is-never-deleted" in {policy.id for policy in boundary.policies}


def test_the_whole_configuration_has_no_finding(keys: Keys, tmp_path: Path) -> None:
    """`bailiwick check` has nothing to say about it, whoever approves."""
    for approver in ("ana", 'b"o', "1"):
        assert configuration.check(story.prepare(tmp_path, DOORS, keys, approver=approver).configuration) == []


def test_without_the_agents_package_it_says_what_to_do(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that cannot be told says so before anything is started."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CallerError, match="pip install"):
        story.prepare(tmp_path, DOORS, keys, approver="ana")
    assert list(tmp_path.iterdir()) == []
