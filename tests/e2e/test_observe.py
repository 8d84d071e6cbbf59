"""An installation in a world outside, where every address answers: what is forwarded really arrives there, and what must not, does not."""

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from tests.e2e.stage import decided
from tests.e2e.world import outside
from tests.e2e.world.outside import Contact, Seen

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox]

FAR = "93.184.215.14"  # an ordinary address of the internet; in the world outside, a canary
METADATA, PRIVATE = "169.254.169.254", "10.1.2.3"

_OBSERVE = """
import json
from tests.e2e.installation import Installation
with Installation() as installed:
    curl = "curl -sS -m 20 --noproxy '*' -w '\\n'"
    commands = [f"{curl} http://FAR/seen", f"{curl} -X POST -d x http://FAR/written", f"{curl} http://METADATA/latest", f"{curl} http://PRIVATE/"]
    done = installed.run("--observe", "--no-workspace", "--", "sh", "-c", "; ".join(commands))
    print(json.dumps({"said": done.said, "events": done.events, "status": done.status, "left": installed.left(done.view.run)}))
"""

_NAMES = """
import json
from tests.e2e.installation import Installation
from tests.e2e.world.resolver import Resolver
hosts = ("good.example", "sly.example", "inside.example", "nowhere.example")
rules = [{"allow": ["read"], "http": host} for host in hosts]
curl = "; ".join(f"curl -sS -m 20 --noproxy '*' -w '\\n' http://{host}/" for host in (*hosts, "secret.unlisted.example"))
agent = {"command": ["sh", "-c", curl], "boundary": rules}
with Resolver({"good.example": "FAR", "sly.example": "127.0.0.1", "inside.example": "PRIVATE", "secret.unlisted.example": "FAR"}) as resolver:
    with Installation(json.dumps({"agents": {"caller": agent}})) as installed:
        done = installed.run("caller", "call")
    print(json.dumps({"said": done.said, "events": done.events, "status": done.status, "asked": resolver.asked}))
"""


@dataclass(frozen=True, slots=True)
class Outside:
    contacts: list[Contact]
    told: dict[str, Any]

    @property
    def answers(self) -> list[Any]:
        """What curl printed, a line for each URL."""
        return [json.loads(line) for line in self.told["said"].splitlines() if line.startswith("{")]


def run(code: str, *udp_ports: int) -> Outside:
    text = code.replace("FAR", FAR).replace("METADATA", METADATA).replace("PRIVATE", PRIVATE)
    seen: Seen = outside.run([sys.executable, "-c", text], udp_ports=udp_ports or outside.UDP_PORTS)
    assert seen.status == 0, seen.errors[-4000:]
    return Outside(seen.contacts, json.loads(seen.output))


def finished(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {event["resource"]: event["body"] for event in events if event["kind"] == "action.finished"}


def test_observing_forwards_what_the_network_allows_and_records_what_would_have_been() -> None:
    """A boundary that allows nothing, only observed: read and write arrive outside, each with the deny it would have had; metadata and private addresses
    stay out of reach all the same."""
    found = run(_OBSERVE)
    events = found.told["events"]
    assert found.answers[:2] == [{"canary": "reached"}] * 2
    assert [problem["status"] for problem in found.answers[2:]] == [403, 403]
    assert {problem["rule"] for problem in found.answers[2:]} == {"bailiwick.network/address"}
    assert [contact for contact in found.contacts if contact.protocol == "tcp"] == [Contact("tcp", FAR, 80, 1)], "one connection, kept for both"
    assert [contact for contact in found.contacts if contact.protocol != "tcp"] == []
    assert decided(events)[:2] == [("read", f"http://{FAR}/seen", "deny"), ("write", f"http://{FAR}/written", "deny")]
    assert all(event["body"]["observed"] for event in events if event["kind"] == "action.decided")
    outcomes = finished(events)
    assert [outcomes[f"http://{FAR}/{path}"]["status"] for path in ("seen", "written")] == [200, 200]
    assert [outcomes[f"http://{address}"]["error"].partition(":")[0] for address in (f"{METADATA}/latest", f"{PRIVATE}/")] == ["address-refused"] * 2
    kinds = [event["kind"] for event in events if event.get("resource") == f"http://{FAR}/written"]
    assert kinds == ["action.decided", "action.finished"], "intent before outcome, observed or not"
    assert found.told["left"] == []


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, to mount a resolv.conf")
def test_a_name_is_resolved_late_and_its_address_checked() -> None:
    """A name that was allowed is asked for only then; one that leads to loopback or into a private network is refused, one that is nowhere is said to be,
    and one that was not allowed is not asked for at all: nothing leaves by a query."""
    found = run(_NAMES, 123)  # 53 is the resolver's
    events = found.told["events"]
    good, sly, inside, nowhere, unlisted = found.answers
    assert good == {"canary": "reached"}
    assert (sly["status"], inside["status"]) == (403, 403)
    assert "loopback" in sly["reason"]
    assert "private" in inside["reason"]
    assert (nowhere["status"], nowhere["rule"]) == (502, "bailiwick.upstream/name-unknown")
    assert (unlisted["status"], unlisted["retry"]) == (403, "never")
    assert set(found.told["asked"]) == {"good.example", "sly.example", "inside.example", "nowhere.example"}
    assert found.contacts == [Contact("tcp", FAR, 80, 1)]
    assert {event["resource"] for event in events if event["kind"] == "name.asked"} == {
        "good.example", "sly.example", "inside.example", "nowhere.example", "secret.unlisted.example",
    }  # fmt: skip
