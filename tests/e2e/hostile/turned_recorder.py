"""A recorder that was taken over. Its own files are its own to spoil; what it must not do is have the spoiled history signed, or touch anything else."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.hostile import intruder
from tests.e2e.hostile.intruder import Attempt, ask

from bailiwick.record.merkle import CompactRange, consistency_proof, leaf_hash, node_hash
from bailiwick.record.signing import SIGNER, CheckpointSigned, DescribeKey, KeyDescribed, SignCheckpoint

LIE = b'"kind":"run.absolved"'
TRUTH = b'"kind":"run.requested"'  # as long: what is altered is otherwise whole


def attempts(facts: dict[str, Any], given: dict[str, Any]) -> Iterator[Attempt]:
    layout, run = given["layout"], facts["own"]
    yield from intruder.descriptors()
    secret = {name: Path(path) for name, path in facts["secret"].items() if name != "record.db"}
    yield from intruder.files(secret, written={name: Path(path) for name, path in facts["written"].items() if name != "record.db"})
    yield from intruder.others(facts["pids"])
    yield from intruder.kernel()
    targets = intruder.orders(run, "gateway-0")
    del targets["signer"]  # may be spoken to; below
    yield from intruder.sockets(layout, run=run, targets=targets)
    yield from intruder.adoptions(layout, run, ["gateway-0", "gateway-1"])
    yield "lease of a run", lambda: intruder.use_lease(layout, run)
    yield from _rewritten(layout.record / "record.db", layout.socket("signer"), facts["origin"])


def _rewritten(path: Path, signer: str, origin: str) -> Iterator[Attempt]:
    yield "OWN describe the key", lambda: ask(signer, SIGNER, DescribeKey())

    def leaves() -> list[bytes]:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return [bytes(leaf) for (leaf,) in connection.execute("SELECT leaf FROM events ORDER BY seq")]

    def sign(changed: list[bytes]) -> str:
        """The head of another history, with the proof that is honest for it."""
        described = ask(signer, SIGNER, DescribeKey())
        assert isinstance(described, KeyDescribed)
        hashes = [leaf_hash(leaf) for leaf in changed]

        def node(level: int, index: int) -> bytes:
            return hashes[index] if level == 0 else node_hash(node(level - 1, 2 * index), node(level - 1, 2 * index + 1))

        tree = CompactRange()
        for each in hashes:
            tree.append(each)
        proof = consistency_proof(described.size, tree.size, node) if tree.size >= described.size else []
        signed = ask(signer, SIGNER, SignCheckpoint(origin=origin, size=tree.size, root=tree.root().hex(), consistency=[each.hex() for each in proof]))
        assert isinstance(signed, CheckpointSigned)
        return signed.note

    def altered() -> list[bytes]:
        known = leaves()
        at = next(index for index, leaf in enumerate(known) if TRUTH in leaf)
        return [*known[:at], known[at].replace(TRUTH, LIE), *known[at + 1 :]]

    yield "sign an altered history", lambda: sign(altered())
    yield "sign a history without its first event", lambda: sign([*leaves()[1:], leaves()[-1]])
    yield "sign a history in another order", lambda: sign([*reversed(leaves())])
    yield "sign a shorter history", lambda: sign(leaves()[:3])
    yield "sign a history with an event put in between", lambda: sign([*leaves()[:2], leaves()[1], *leaves()[2:]])
    yield "sign another log", lambda: ask(signer, SIGNER, SignCheckpoint(origin="another.example/record", size=1, root="00" * 32, consistency=[]))
    yield "OWN sign the history as it is", lambda: sign(leaves())

    def alter_in_place() -> str:
        """What it may do to its own file: the test shows that it is found out."""
        known = leaves()
        at = next(index for index, leaf in enumerate(known) if TRUTH in leaf)
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection, connection:
            connection.execute("DROP TRIGGER events_never_change")
            lie = known[at].replace(TRUTH, LIE)
            connection.execute("UPDATE events SET leaf = ?, hash = ? WHERE seq = ?", (lie, leaf_hash(lie), at + 1))
        return f"event {at + 1}"

    yield "OWN alter its own file", alter_in_place
