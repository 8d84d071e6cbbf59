"""The whole configuration: what must hold across its parts, each finding at its place."""

from pathlib import Path

import pytest

from bailiwick.app.configuration import check, load_configuration
from bailiwick.kernel.document import Invalid

GOOD = """\
trust_domain: example.org
hosts: {config.internal: "127.0.0.1:8443"}
approvers: {oncall: {operators: [ana], quorum: 1, expires: 2h}}
operators: {ana: {uid: 1000, roles: [approver]}}
agents:
  deployer:
    command: [sh, -c, "true"]
    workspace: ./work
    boundary:
      - {allow: [read], http: config.internal}
      - {hold: [write], http: config.internal, approvers: [oncall]}
    credentials: [{use: token, for: config.internal, as: "Authorization: Bearer {value}"}]
credentials: {token: {source: environment, variable: TOKEN}}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path


def findings(here: Path, text: str) -> list[str]:
    file = here / "bailiwick.yaml"
    file.write_text(text)
    return [f"{finding.line}: {finding.field}: {finding.message}" for finding in check(file)]


def test_a_good_configuration_has_no_finding(here: Path) -> None:
    """And is then loaded."""
    assert findings(here, GOOD) == []
    assert set(load_configuration(here / "bailiwick.yaml").agents) == {"deployer"}


@pytest.mark.parametrize(
    ("good", "bad", "line", "says"),
    [
        ("workspace: ./work", "workspace: ./nowhere", 8, "'./nowhere' is not a directory"),
        ("[{use: token,", "[{use: tokem,", 12, "credential 'tokem' is not declared; declared: token"),
        ("approvers: [oncall]}", "approvers: [oncal]}", 11, "approver group 'oncal' is not declared"),
        ("operators: [ana],", "operators: [bo],", 3, "operator 'bo' is not declared; declared: ana"),
        ("command: [sh,", "command: [no-such-program,", 7, "command 'no-such-program' is not found"),
        ("trust_domain: example.org", "trust_domain: Example.org", 1, "trust_domain"),
        ('"127.0.0.1:8443"', '"127.0.0.1"', 2, "is not an address and a port"),
        ('"127.0.0.1:8443"', "{address: 127.0.0.1:8443, ca: none.pem}", 2, "'none.pem' is not a file"),
        ("trust_domain: example.org", "trust_domian: example.org", 1, "is not a known key"),
        ("trust_domain: example.org", "schedules: {}", 1, "come with a later version"),
        ("trust_domain: example.org", "api: {listen: '0.0.0.0:80'}", 1, "is not a loopback address and a port"),
        ("    workspace: ./work", "    image: agent", 6, "images come with the docker backend"),
    ],
)
def test_each_fault_is_found_at_its_line(here: Path, good: str, bad: str, line: int, says: str) -> None:
    """Value, expectation and way out, at the line of the value."""
    assert good in GOOD
    found = findings(here, GOOD.replace(good, bad, 1))
    assert any(says in finding and finding.startswith(f"{line}: ") for finding in found), found


def test_every_fault_is_found_at_once(here: Path) -> None:
    """Nobody mends a file one error at a time."""
    text = GOOD.replace("workspace: ./work", "workspace: ./nowhere").replace("use: token", "use: tokem").replace("operators: [ana]", "operators: [bo]")
    assert len(findings(here, text)) == 3


def test_an_invalid_file_is_not_loaded(here: Path) -> None:
    """Half a configuration is none."""
    (here / "bailiwick.yaml").write_text("agents: {a: {command: []}}\n")
    with pytest.raises(Invalid):
        load_configuration(here / "bailiwick.yaml")


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ("    workspace: ./work", "    models: {provider: foo, allow: [m]}", "provider 'foo' is not served; must be one of openai, anthropic"),
        ("{uid: 1000, roles: [approver]}", "{user: nobody-such, roles: [approver]}", "no user 'nobody-such'"),
    ],
)
def test_what_would_fail_at_the_start_is_found_before_it(here: Path, good: str, bad: str, says: str) -> None:
    """A provider nobody serves, a person this machine does not know."""
    found = findings(here, GOOD.replace(good, bad, 1))
    assert any(says in finding for finding in found), found
