from pathlib import Path
from typing import Any

import pytest
from tests.fakes.neighbourhood import Neighbourhood, Upstream, Wire, neighbourhood

from bailiwick.critic.enforcement import BudgetLimits
from bailiwick.gateway import git
from bailiwick.gateway.git import Repositories, Repository

pytestmark = pytest.mark.anyio

READ = [{"allow": ["read"], "http": host} for host in ("git.internal", "other.internal")]
ADVERTISEMENT = "application/x-git-upload-pack-advertisement"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # as the worker runs


def answer(content_type: str = ADVERTISEMENT, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: 0\r\n\r\n".encode()


async def discover(wire: Wire, path: str = "/team/r.git", query: str = "service=git-upload-pack", host: str = "git.internal", method: str = "GET") -> int:
    return (await wire.ask(f"{method} {path}/info/refs?{query} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())).status


async def fetch(wire: Wire, path: str = "/team/r.git", host: str = "git.internal") -> int:
    head = f"POST {path}/git-upload-pack HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: 4\r\n\r\n0000"
    return (await wire.ask(head.encode())).status


async def test_a_fetch_is_a_read_once_its_repository_has_announced_itself(tmp_path: Path) -> None:
    """As git does it: discovery, then the POSTs of the fetch, none of which counts as a write or needs its intent to be durable."""
    async with neighbourhood(tmp_path, *READ, budget=BudgetLimits(writes=0)) as place:
        upstream = await place.pin("git.internal", Upstream(answers=[answer()]))
        wire = await place.dial("git.internal", 80)
        assert await discover(wire) == 200
        assert [await fetch(wire), await fetch(wire)] == [200, 200]
        await place.finished(3)
        assert {event.verb for event in place.recorder.of("action.decided")} == {"read"}
        assert (len(upstream.requests), place.recorder.durable, place.run.used.writes) == (3, [], 0)


async def test_any_other_post_to_such_a_path_is_a_write(tmp_path: Path) -> None:
    """A hook may have the path, and a client may send the content type: without the announcement it is what any POST is, and is decided as that."""
    async with neighbourhood(tmp_path, *READ) as place:
        upstream = await place.pin("git.internal", Upstream(answers=[answer()]))
        wire = await place.dial("git.internal", 80)
        assert await fetch(wire, "/hooks/pay") == 403
        assert await discover(wire) == 200
        assert await fetch(wire, "/hooks/pay") == 403
        assert upstream.requests[1:] == []
        place.rules.append(type(place.rules[0]).model_validate({"allow": ["write"], "http": "git.internal"}))
        place.reopen()
        assert await fetch(wire, "/hooks/pay") == 200
        await place.finished(2)
        assert [event.verb for event in place.recorder.durable] == ["write"]
        assert place.run.used.writes == 1


async def other_host(place: Neighbourhood) -> Wire:
    await place.pin("other.internal", Upstream(answers=[answer()]))
    return await place.dial("other.internal", 80)


@pytest.mark.parametrize(
    ("answered", "asked"),
    [
        (answer(status="404 Not Found"), {}),
        (answer("text/html"), {}),
        (answer(status="206 Partial Content"), {}),
        (answer(), {"query": "service=git-receive-pack"}),
        (answer(), {"query": "service=git-upload-pack&x=1"}),
        (answer(), {"path": "/team"}),
        (answer(), {"path": "/team/r.git/"}),
        (answer(), {"method": "HEAD"}),
        (answer(), {"host": "other.internal"}),
    ],
)
async def test_only_the_repository_itself_announces_itself(tmp_path: Path, answered: bytes, asked: dict[str, str]) -> None:
    """By this very path at this host, with the answer that git's servers give and no other."""
    async with neighbourhood(tmp_path, *READ) as place:
        upstream = await place.pin("git.internal", Upstream(answers=[answered]))
        wire = await place.dial("git.internal", 80)
        await discover(await other_host(place) if "host" in asked else wire, **asked)
        assert await fetch(wire) == 403
        assert not any(request.startswith(b"POST") for request in upstream.requests)


async def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was used longest ago is forgotten first."""
    monkeypatch.setattr(git, "REPOSITORIES_MAX", 2)
    known = Repositories()
    for path in ("/a", "/b", "/a", "/c"):
        known.add(Repository("https", "git.internal", 443, path))
    assert [repository.path for repository in known._known] == ["/a", "/c"]
