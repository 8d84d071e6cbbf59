import os
import stat
from pathlib import Path

import yaml

from bailiwick.cli.demo import story
from bailiwick.cli.demo.world import Doors, Keys
from bailiwick.critic.rules import ApproverGroup, ModelRules, Rule, check

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


def test_the_boundary_is_one_the_critic_takes(keys: Keys, tmp_path: Path) -> None:
    """The demo's boundary has no finding."""
    setting = story.prepare(tmp_path, DOORS, keys, approver="ana")
    written = yaml.safe_load(setting.configuration.read_text())
    agent = written["agents"][setting.agent]
    rules = [Rule(**rule) for rule in agent["boundary"]]
    groups = {name: ApproverGroup.model_validate(group | {"expires": 600.0}) for name, group in written["approvers"].items()}
    assert check(setting.agent, rules, ModelRules(**agent["models"]), groups) == []
