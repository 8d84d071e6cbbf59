"""The signer signs one history, whatever it is asked and however it is stopped."""

import os
import stat
from pathlib import Path

import pytest

from bailiwick.broker.signer import KEY, STATE, Signer
from bailiwick.kernel.channel import Done, Received
from bailiwick.kernel.errors import BackendError, CallerError, Conflict
from bailiwick.record.checkpoint import Verifier, verify_checkpoint
from bailiwick.record.merkle import CompactRange, consistency_proof, leaf_hash
from bailiwick.record.signing import CheckpointSigned, DescribeKey, KeyDescribed, SignCheckpoint

ORIGIN = "example.org/record"
LEAVES = [leaf_hash(b"%d" % number) for number in range(40)]


def node(leaves: list[bytes], level: int, index: int) -> bytes:
    tree = CompactRange()
    for leaf in leaves[index << level : (index + 1) << level]:
        tree.append(leaf)
    return tree.root()


def asked(first: int, second: int, leaves: list[bytes] = LEAVES, origin: str = ORIGIN) -> SignCheckpoint:
    tree = CompactRange()
    for leaf in leaves[:second]:
        tree.append(leaf)
    proof = consistency_proof(first, second, lambda level, index: node(leaves, level, index)) if first else []
    return SignCheckpoint(origin, second, tree.root().hex(), [each.hex() for each in proof])


def test_each_head_extends_the_last(tmp_path: Path) -> None:
    """Growing heads are signed; the notes verify with the key it describes."""
    signer = Signer(tmp_path, ORIGIN)
    for first, second in [(0, 3), (3, 17), (17, 17), (17, 40)]:
        signed = signer.sign(asked(first, second))
        assert signed.size == second
        assert verify_checkpoint(signed.note, Verifier.parse(signer.verifier)).size == second
    signer.close()


@pytest.mark.parametrize(
    "request_",
    [
        asked(0, 5),
        asked(5, 10, [leaf_hash(b"x"), *LEAVES[1:]]),
        asked(0, 20),
        asked(9, 20),
        asked(10, 20, [*LEAVES[:9], leaf_hash(b"x"), *LEAVES[10:]]),
        SignCheckpoint(ORIGIN, 10, "00" * 32, []),
    ],
)
def test_another_history_is_not_signed(tmp_path: Path, request_: SignCheckpoint) -> None:
    """A smaller head, another head of the same size, and one whose proof does not fit are refused, also after a restart."""
    signer = Signer(tmp_path, ORIGIN)
    signer.sign(asked(0, 10))
    with pytest.raises(Conflict):
        signer.sign(request_)
    signer.close()
    again = Signer(tmp_path, ORIGIN)
    with pytest.raises(Conflict):
        again.sign(request_)
    assert again.sign(asked(10, 20)).size == 20
    again.close()


@pytest.mark.parametrize(
    "request_",
    [
        asked(0, 5, origin="other"),
        SignCheckpoint(ORIGIN, 0, "00" * 32, []),
        SignCheckpoint(ORIGIN, 2**63, "00" * 32, []),
        SignCheckpoint(ORIGIN, 1, "00", []),
        SignCheckpoint(ORIGIN, 1, "zz" * 32, []),
        SignCheckpoint(ORIGIN, 1, "00" * 32, ["00" * 32]),
        SignCheckpoint(ORIGIN, 1, "00" * 32, ["00" * 32] * 65),
    ],
)
def test_what_is_no_head_is_refused(tmp_path: Path, request_: SignCheckpoint) -> None:
    """Another log, no size, no hash: the caller's fault, and nothing is signed."""
    signer = Signer(tmp_path, ORIGIN)
    with pytest.raises(CallerError):
        signer.sign(request_)
    signer.close()


def test_nothing_leaves_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When what was signed cannot be written down, there is no signature, and the next attempt starts from what was written."""
    signer = Signer(tmp_path, ORIGIN)
    signer.sign(asked(0, 10))
    with monkeypatch.context() as patched:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(os, "fsync", full)
        with pytest.raises(BackendError, match="No space left"):
            signer.sign(asked(10, 20))
    assert signer.sign(asked(10, 30)).size == 30
    signer.close()


def test_the_key_is_private_and_stays(tmp_path: Path) -> None:
    """Mode 0600, the same key after a restart, no key material in any text."""
    signer = Signer(tmp_path, ORIGIN)
    verifier = signer.verifier
    assert stat.S_IMODE((tmp_path / KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / STATE).stat().st_mode) == 0o600
    with pytest.raises(BackendError, match="in use by another signer"):
        Signer(tmp_path, ORIGIN)
    signer.close()
    again = Signer(tmp_path, ORIGIN)
    assert again.verifier == verifier
    again.close()


def test_a_key_does_not_forget(tmp_path: Path) -> None:
    """A key without its state, with a damaged one, with another's, readable by others, or cut short does not sign."""
    Signer(tmp_path, ORIGIN).close()
    state = (tmp_path / STATE).read_bytes()
    for broken, what in [
        (b"", "damaged"),
        (b'{"verifier":"x","size":0,"root":""}', "belongs to the key"),
        (state.replace(b'"size":0', b'"size":9'), "damaged"),
    ]:
        (tmp_path / STATE).write_bytes(broken)
        with pytest.raises(BackendError, match=what):
            Signer(tmp_path, ORIGIN)
    (tmp_path / STATE).unlink()
    with pytest.raises(BackendError, match="is missing"):
        Signer(tmp_path, ORIGIN)
    (tmp_path / STATE).write_bytes(state)
    with pytest.raises(BackendError, match="trust domain"):
        Signer(tmp_path, "example.org/renamed")
    (tmp_path / KEY).chmod(0o640)
    with pytest.raises(BackendError, match="0600"):
        Signer(tmp_path, ORIGIN)
    (tmp_path / KEY).chmod(0o600)
    (tmp_path / KEY).write_bytes(b"short")
    with pytest.raises(BackendError, match="5 bytes"):
        Signer(tmp_path, ORIGIN)


@pytest.mark.anyio
async def test_it_answers_its_two_questions(tmp_path: Path, anyio_backend: str) -> None:
    """The handler of the signer's service: sign, describe, and nothing else."""
    signer = Signer(tmp_path, ORIGIN)
    channel = None
    assert (await signer.handle(channel, Received(DescribeKey()))).message == KeyDescribed(signer.verifier, 0)  # type: ignore[arg-type]
    assert isinstance((await signer.handle(channel, Received(asked(0, 1)))).message, CheckpointSigned)  # type: ignore[arg-type]
    with pytest.raises(CallerError):
        await signer.handle(channel, Received(Done()))  # type: ignore[arg-type]
    signer.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
