import time
from typing import Any


def test_an_export_is_sent_whole_and_its_file_is_gone(api: Any) -> None:
    """The file made for one answer does not outlive it."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    assert api("GET", f"/v1/record/export?run={run}") == (200, b"export\n" * 1000)
    assert api("GET", "/v1/record/export")[0] == 200
    assert len(api.governance.exports) == 2
    deadline = time.monotonic() + 5
    while any(path.exists() for path in api.governance.exports):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert api("GET", "/v1/record/export?run=run-0")[0] == 404


def test_the_key_is_text(api: Any) -> None:
    """The vkey as a file would hold it."""
    status, key = api("GET", "/v1/record/key")
    assert (status, key.decode().strip()) == (200, api.governance.record_key())
