import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bailiwick.cli.client import Client
from bailiwick.cli.exits import Refused, Unreachable
from bailiwick.governor.views import RunView
from bailiwick.kernel.errors import BailiwickError, PeerError
from bailiwick.kernel.layout import Layout


@contextmanager
def answering(tmp_path: Path, *answers: bytes) -> Iterator[Client]:
    """A server that says these bytes, one connection each, whatever it is asked, and hangs up."""
    layout = Layout(tmp_path)
    layout.sockets.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(layout.socket("api"))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Client(layout)
        thread.join(5)


def answer(body: bytes, kind: str = "application/json", status: str = "200 OK", length: int | None = None) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", Unreachable),
        (b"\x00\x01\x02", Unreachable),
        (b"HTTP/1.1 200 OK\r\n", PeerError),
        (answer(b"{"), PeerError),
        (answer(b"[]"), PeerError),
        (answer(b'{"run": 1}'), PeerError),
        (answer(b"\xff\xfe"), PeerError),
        (answer(b"{}", length=100), BailiwickError),
        (answer(b"oh", "text/plain", "502 Bad Gateway"), Refused),
        (answer(b"[1]", "application/problem+json", "500 Oops"), Refused),
        (answer(b"{", "application/problem+json", "500 Oops"), PeerError),
        (answer(b'{"status": "x", "detail": 7, "code": null}', "application/problem+json", "500 Oops"), Refused),
    ],
    ids=repr,
)
def test_whatever_answers_it_is_an_error_of_ours(tmp_path: Path, raw: bytes, error: type[BailiwickError]) -> None:
    """Half an answer, another program, another version: never a traceback, never a value made up."""
    with answering(tmp_path, raw) as client, pytest.raises(error):
        client.get("/v1/runs/x", RunView)


@pytest.mark.parametrize("raw", [b"", answer(b"x" * 10, "application/x-tar", length=1000), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"])
def test_a_download_that_breaks_off_is_no_download(tmp_path: Path, raw: bytes) -> None:
    """Fewer bytes than announced are an error, not a short file."""
    with answering(tmp_path, raw) as client, pytest.raises(BailiwickError):
        client.download("/v1/record/export", io.BytesIO())


def test_a_stream_says_what_went_wrong_in_the_middle(tmp_path: Path) -> None:
    """A problem as its last line is raised; empty lines are nothing; a line that is no JSON is an error."""
    lines = b'{"sequence": 1}\n\n{"problem": {"status": 503, "code": "backend", "detail": "the record is down"}}\n'
    with answering(tmp_path, answer(lines, "application/x-ndjson"), answer(b"nonsense\n", "application/x-ndjson")) as client:
        stream = client.lines("/v1/events")
        assert next(stream) == {"sequence": 1}
        with pytest.raises(Refused, match="the record is down") as caught:
            next(stream)
        assert caught.value.status == 503
        with pytest.raises(PeerError):
            list(client.lines("/v1/events"))


def test_what_is_there_and_answers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket nobody serves, a file that is no socket: each is named."""
    from bailiwick.cli import client as module

    layout = Layout(tmp_path)
    layout.sockets.mkdir()
    path = Path(layout.socket("api"))
    path.write_text("")
    with pytest.raises(Unreachable, match=r"api\.sock"):
        Client(layout).get("/v1/status", dict[str, Any])
    path.unlink()
    monkeypatch.setattr(module, "CALL_SECONDS_MAX", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(Unreachable, match="no answer"):
            list(Client(layout)._ask("GET", "/v1/status", seconds_max=0.1).__enter__())
