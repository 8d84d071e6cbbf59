import hashlib
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bailiwick.cli.demo.configuration_service import VALUE_BYTES_MAX, ConfigurationService

TOKEN = "cfg-token"


@pytest.fixture
def service() -> Iterator[ConfigurationService]:
    with ConfigurationService(token=TOKEN, values={"staging/image": "old"}, tickets={"7": "please"}) as running:
        yield running


def ask(service: ConfigurationService, method: str, path: str, value: Any = None, token: str = TOKEN, **fields: str) -> tuple[int, Any, str | None]:
    line = http.client.HTTPConnection("127.0.0.1", service.port, timeout=5)
    try:
        raw = value if isinstance(value, bytes) else json.dumps({"value": value}) if value is not None else None
        line.request(method, path, raw, {"authorization": f"Bearer {token}"} | {name.replace("_", "-"): text for name, text in fields.items()})
        answer = line.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else None, answer.getheader("etag")
    finally:
        line.close()


def test_a_value_is_read_written_and_deleted(service: ConfigurationService) -> None:
    """The plain round: 200, 201 for a new one, 204, then 404; the tag changes with the value."""
    status, body, before = ask(service, "GET", "/v1/staging/image")
    assert (status, body["value"]) == (200, "old")
    status, _, after = ask(service, "PUT", "/v1/staging/image", "new")
    assert status == 200
    assert before != after
    assert ask(service, "PUT", "/v1/production/image", "new")[0] == 201
    assert service.values == {"staging/image": "new", "production/image": "new"}
    assert ask(service, "DELETE", "/v1/production/image")[0] == 204
    assert ask(service, "DELETE", "/v1/production/image")[0] == 404
    assert ask(service, "GET", "/v1/production/image")[0] == 404


def test_if_match_protects_a_later_change(service: ConfigurationService) -> None:
    """A write for a version that is gone is 412 and changes nothing; so is a write that expects no value where there is one."""
    _, _, tag = ask(service, "GET", "/v1/staging/image")
    assert tag is not None
    assert ask(service, "PUT", "/v1/staging/image", "second", if_match=tag)[0] == 200
    assert ask(service, "PUT", "/v1/staging/image", "third", if_match=tag)[0] == 412
    assert ask(service, "DELETE", "/v1/staging/image", if_match=f'{tag}, "other"')[0] == 412
    assert ask(service, "PUT", "/v1/staging/image", "third", if_none_match="*")[0] == 412
    assert ask(service, "PUT", "/v1/staging/other", "first", if_match="*")[0] == 412
    assert ask(service, "PUT", "/v1/staging/other", "first", if_none_match="*")[0] == 201
    assert service.values == {"staging/image": "second", "staging/other": "first"}


def test_without_the_token_nothing_happens_and_it_is_noted(service: ConfigurationService) -> None:
    """A stranger's write is 401, changes nothing, and stands in the journal; the journal holds no token."""
    assert ask(service, "PUT", "/v1/staging/image", "evil", token="guess")[0] == 401
    assert ask(service, "PUT", "/v1/staging/image", "new")[0] == 200
    journal = service.journal()
    assert [(entry["authorised"], entry["changed"], entry["status"]) for entry in journal] == [(False, False, 401), (True, True, 200)]
    assert journal[1]["body_sha256"] == hashlib.sha256(b'{"value": "new"}').hexdigest()
    assert journal[1]["token_sha256"] == hashlib.sha256(TOKEN.encode()).hexdigest()
    assert TOKEN not in json.dumps(journal)


def test_tickets_are_read_only(service: ConfigurationService) -> None:
    """A ticket can be read by its id, and not be written."""
    assert ask(service, "GET", "/v1/tickets/7")[1] == {"id": "7", "text": "please"}
    assert ask(service, "GET", "/v1/tickets/8")[0] == 404
    assert ask(service, "PUT", "/v1/tickets/7", "other")[0] == 405


@pytest.mark.parametrize(
    ("method", "path", "value", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/v1/staging/a/b", None, 404),
        ("GET", "/v1/../etc", None, 404),
        ("POST", "/v1/staging/image", "x", 405),
        ("PUT", "/v1/staging/image", b"not json", 400),
        ("PUT", "/v1/staging/image", b"[]", 400),
        ("PUT", "/v1/staging/image", b'{"value": 3}', 400),
        ("PUT", "/v1/staging/image", "x" * (VALUE_BYTES_MAX + 1), 400),
        ("PUT", "/v1/staging/image", b'{"value": "\\ud800"}', 200),
    ],
)
def test_bad_input(service: ConfigurationService, method: str, path: str, value: Any, status: int) -> None:
    """What does not fit is refused with a reason and changes nothing."""
    assert ask(service, method, path, value)[0] == status
    assert service.journal()[0]["changed"] == (status == 200)


def test_every_write_of_many_is_in_the_journal(service: ConfigurationService) -> None:
    """Concurrent writes are each counted once, and numbered without a gap."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: ask(service, "PUT", f"/v1/staging/k{number % 5}", str(number)), range(200)))
    journal = service.journal()
    assert [entry["number"] for entry in journal] == list(range(200))
    assert sum(entry["changed"] for entry in journal) == 200
