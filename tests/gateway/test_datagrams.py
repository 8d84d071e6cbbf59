import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.neighbourhood import neighbourhood

from bailiwick.gateway.datagrams import is_answer, serve_dns, watch_attempts
from bailiwick.kernel.errors import BackendError
from bailiwick.record.event import Event

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


def question(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def packet(protocol: int, destination: str, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    return head + socket.inet_aton("10.0.0.1") + socket.inet_aton(destination) + payload


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_name_is_answered_from_the_address_that_was_asked(tmp_path: Path, family: socket.AddressFamily) -> None:
    """The reply comes from where the question went, whichever loopback address that was, and the name is recorded once."""
    async with neighbourhood(tmp_path) as place:
        server = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("", 0))
        turns = serve_dns(place.run, server)
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect(("127.0.0.53", server.getsockname()[1]))  # takes replies from there only
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in range(2):
            client.send(question("config.internal"))
            async with asyncio.timeout(10):
                reply = await loop.sock_recv(client, 512)
            assert reply.endswith(socket.inet_aton(place.run.names.address_of("config.internal")))
        client.send(b"nonsense")
        await place.until(lambda: bool(place.recorder.of("attempt.refused")))
        client.close()
        turns.close()
        assert [event.resource for event in place.recorder.of("name.asked")] == ["config.internal"]


async def test_a_name_that_cannot_be_recorded_has_no_address(tmp_path: Path) -> None:
    """What a restarted worker could not be told is told to nobody: the agent asks again, and the order of addresses is that of the record."""
    async with neighbourhood(tmp_path) as place:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        turns = serve_dns(place.run, server)
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect(server.getsockname())
        refused: list[Event] = []

        def refuse(event: Event) -> None:
            refused.append(event)
            raise BackendError("recorder is down")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place.recorder, "append", refuse)
            client.send(question("a.example"))
            await place.until(lambda: len(refused) == 1)
        assert place.run.names.names() == ()
        for name in ("b.example", "a.example", "b.example"):
            client.send(question(name))
        await place.until(lambda: len(place.recorder.of("name.asked")) == 2)
        assert tuple(event.resource for event in place.recorder.of("name.asked")) == place.run.names.names() == ("b.example", "a.example")
        client.close()
        turns.close()


async def test_what_nobody_serves_is_recorded_and_what_is_answered_is_not(tmp_path: Path) -> None:
    """A SYN to an unserved port, a datagram, a ping: attempts. A served port, an answer of ours or of the kernel: none."""
    async with neighbourhood(tmp_path) as place:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        turns = watch_attempts(place.run, ours, lambda protocol, port: (protocol, port) == ("tcp", 443))
        syn = bytes(13) + b"\x02" + bytes(6)
        address = place.run.names.address_of("database.example")
        theirs.send(packet(6, address, struct.pack("!2H", 40000, 5432) + syn[4:]))
        theirs.send(packet(6, "1.2.3.4", struct.pack("!2H", 40000, 443) + syn[4:]))
        theirs.send(packet(17, "8.8.8.8", struct.pack("!4H", 40000, 123, 8, 0)))
        theirs.send(packet(17, "127.0.0.1", struct.pack("!4H", 53, 40000, 8, 0)))
        theirs.send(packet(1, "1.1.1.1", b"\x08\0\0\0"))
        theirs.send(packet(1, "10.0.0.1", b"\x03\x03\0\0"))
        theirs.send(b"\xff")
        await place.until(lambda: len(place.recorder.of("attempt.refused")) == 3)
        assert [event.body["where"] for event in place.recorder.of("attempt.refused")] == [
            "tcp database.example port 5432", "udp 8.8.8.8 port 123", "icmp 1.1.1.1",
        ]  # fmt: skip
        theirs.close()
        turns.close()


def test_the_kernels_answers_are_told_from_attempts() -> None:
    """By their type; a cut packet is none."""
    assert is_answer(packet(1, "1.1.1.1", b"\x03"), "icmp")
    assert not is_answer(packet(1, "1.1.1.1", b""), "icmp")
    assert not is_answer(packet(17, "1.1.1.1", b"\0"), "udp")
