from typing import Any

import pytest


@pytest.fixture
def hold(cli: Any) -> str:
    run = cli("run", "deployer", "--detach").strip()
    return str(cli.do(cli.governance.open_hold, run).hold)


def test_what_waits_is_shown_whole(cli: Any, hold: str) -> None:
    """Everything that would be signed over: the action, header fields, the body, rules, approvers, expiry, digest."""
    shown = cli("holds")
    fields = ("x-amz-target: DynamoDB.DeleteTable", "authorization: (9 bytes of SHA-256 abab")
    for words in (hold, "PUT https://config.internal/v1/production/flags", *fields, '{"rollout": 100}', "deployer.boundary[2]", "oncall", "cdcd"):
        assert words in shown
    assert cli.json("holds")[0]["hold"] == hold
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_approving_shows_first_and_settles_once(cli: Any, hold: str) -> None:
    """What is approved is shown, the answer is the governor's, and a second one is refused."""
    assert cli("approve", hold[-8:], "--why", "change 4711", "--yes") == f"{hold} granted\n"
    assert "production/flags" in cli.err
    assert cli.governance.known_holds[hold].signed[0]["why"] == "change 4711"
    cli("approve", hold, "--yes", status=4)
    assert "only a pending one" in cli.err
    assert cli("holds") == ""
    assert hold in cli("holds", "--all")


def test_without_a_terminal_nobody_is_asked_and_nothing_happens(cli: Any, hold: str) -> None:
    """A script that approves says --yes; without it that is a usage error, and the hold waits on."""
    cli("approve", hold, status=2, input="y\n")
    assert "error: no terminal to ask at; use --yes" in cli.err
    assert cli.governance.known_holds[hold].state == "pending"


def test_an_id_that_is_acted_on_is_not_short(cli: Any, hold: str) -> None:
    """Seven characters may be shown by, not settled by."""
    for named in (hold[:12], hold[-7:]):
        cli("approve", named, "--yes", status=4)
        cli("deny", named, "--why", "no", "--yes", status=4)
        assert "at least 8 characters" in cli.err
        assert hold in cli("holds", "--show", named)
    assert cli("deny", hold[:13], "--why", "no") == f"{hold} denied\n"


def test_denying_says_why(cli: Any, hold: str) -> None:
    """Without a reason it is a usage error; an empty one is none."""
    cli("deny", "last", status=2)
    cli("deny", "last", "--why", "  ", status=4)
    assert cli("deny", "last", "--why", "not on a Friday", "--yes") == f"{hold} denied\n"
    assert cli.governance.known_holds[hold].reason == "not on a Friday"


def test_a_grant_is_taken_back_until_it_is_used(cli: Any, hold: str) -> None:
    """What was approved can be denied; what was denied cannot be settled again."""
    cli("approve", hold, "--yes")
    assert cli("deny", hold, "--why", "on second thoughts", "--yes") == f"{hold} denied\n"
    assert [signature["outcome"] for signature in cli.governance.known_holds[hold].signed] == ["granted", "denied"]
    cli("deny", hold, "--why", "once more", "--yes", status=4)
    cli("approve", hold, "--yes", status=4)


def test_an_unknown_hold_is_named(cli: Any) -> None:
    """With the way to find the right one."""
    for name in ("last", "hold-0123456789abcdefg", "nonsense", "../runs"):
        cli("approve", name, "--yes", status=4)
        assert "bailiwick holds" in cli.err


def test_what_a_hold_shows_obeys_nothing(cli: Any) -> None:
    """A body that a compromised worker sent unescaped is still made visible."""
    run = cli("run", "deployer", "--detach").strip()
    cli.do(lambda: cli.governance.open_hold(run, body_text="ok\x1b[8mhidden\u202e", rules=["\x1b[31m"]))
    shown = cli("holds")
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\\u{1b}[8mhidden" in shown
