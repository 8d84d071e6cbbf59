"""A resolver for a world outside: answers A queries from a table, and that anything else does not exist. Root of that world only.

with Resolver({"good.example": "93.184.215.14"}) as resolver:
    ...                                       # every process of this mount namespace asks it
    assert resolver.asked == ["good.example"]
"""

import os
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Mapping

ADDRESS = ("127.0.0.1", 53)
_A, _IN = 1, 1
_FOUND, _UNKNOWN = 0x8180, 0x8183  # response, recursion desired and available; NXDOMAIN


class Resolver:
    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = dict(table)
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._thread = threading.Thread(target=self._serve, name="resolver", daemon=True)

    def __enter__(self) -> "Resolver":
        self._socket.bind(ADDRESS)
        self._thread.start()
        with tempfile.NamedTemporaryFile("w", prefix="resolv-") as file:
            file.write(f"nameserver {ADDRESS[0]}\n")
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)  # of this mount namespace
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                query, peer = self._socket.recvfrom(4096)
            except OSError:
                return
            self._socket.sendto(self._answer(query), peer)

    def _answer(self, query: bytes) -> bytes:
        name, end = _name(query)
        (kind,) = struct.unpack_from(">H", query, end)
        question = query[12 : end + 4]
        self.asked.append(name)
        address = self._table.get(name)
        if address is None or kind != _A:
            flags = _UNKNOWN if address is None else _FOUND
            return query[:2] + struct.pack(">HHHHH", flags, 1, 0, 0, 0) + question
        answer = b"\xc0\x0c" + struct.pack(">HHIH", _A, _IN, 60, 4) + socket.inet_aton(address)
        return query[:2] + struct.pack(">HHHHH", _FOUND, 1, 1, 0, 0) + question + answer


def _name(query: bytes) -> tuple[str, int]:
    """The name asked for, and where its type stands."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("latin-1").lower())
        at += 1 + length
    return ".".join(labels), at + 1
