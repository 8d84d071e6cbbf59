"""Signed notes as C2SP specifies them, against vectors of Go's golang.org/x/mod/sumdb/note."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.kernel.errors import CallerError
from bailiwick.record.checkpoint import Checkpoint, NoteRefused, NoteSigner, Verifier, verify_checkpoint, verify_note

PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SIGNER = NoteSigner("example.org/record", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
HEAD = Checkpoint("example.org/record", 20852163, bytes(range(32)))


def test_a_note_of_another_implementation_verifies() -> None:
    """Go's example key and note."""
    verifier = Verifier.parse(PETER)
    assert str(verifier) == PETER
    assert verify_note(PETER_NOTE, verifier).endswith("your problem is.\n")
    with pytest.raises(NoteRefused, match="not signed by"):
        verify_note(PETER_NOTE, SIGNER.verifier)


def test_a_checkpoint_is_written_as_specified() -> None:
    """Origin, size and root, a line each; an empty line; em dash, name and base64."""
    note = SIGNER.sign(HEAD.text())
    assert note.startswith("example.org/record\n20852163\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n— example.org/record ")
    assert verify_checkpoint(note, SIGNER.verifier) == HEAD
    assert verify_checkpoint(note + "— example.com/witness AAAAAQ==\n".replace("AAAAAQ==", "AAAAAAE="), SIGNER.verifier) == HEAD


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_changed_byte_is_found(data: st.DataObject) -> None:
    """A note with one byte changed, added or taken away verifies with no key."""
    raw = bytearray(SIGNER.sign(HEAD.text()).encode())
    place = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(st.sampled_from(["change", "add", "remove"])):
        case "change":
            raw[place] ^= data.draw(st.integers(1, 255))
        case "add":
            raw.insert(place, data.draw(st.integers(0, 255)))
        case _:
            del raw[place]
    if bytes(raw) == SIGNER.sign(HEAD.text()).encode():
        return
    with pytest.raises(NoteRefused):
        verify_checkpoint(raw.decode("utf-8", "surrogateescape"), SIGNER.verifier)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n1\n",
        f"o\n01\n{'A' * 43}=\n",
        "o\n1\nAAAA\n",
        f"\n1\n{'A' * 43}=\n",
        f"o\n-1\n{'A' * 43}=\n",
        f"o\n1\n{'A' * 43}=\nmore\n",
        f"o\n1\n{'A' * 42}B=\n",
        f"o\n{2**63}\n{'A' * 43}=\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    """Leading zeroes, a short root, extension lines, base64 that is not in its standard form."""
    with pytest.raises(NoteRefused):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "vkey", ["", "a", "a+b+c", PETER[:-1], PETER.replace("c74f", "c74e"), PETER.replace("+ARpc", "+AhpC"), "a b" + PETER, PETER.replace("PeterNeumann", "")]
)
def test_what_is_no_key_is_refused(vkey: str) -> None:
    """A key that was copied wrong is told from one that is right."""
    with pytest.raises(CallerError):
        Verifier.parse(vkey)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b"])
def test_a_key_name_is_one_word(name: str) -> None:
    """Neither spaces nor plus signs."""
    with pytest.raises(CallerError):
        NoteSigner(name, Ed25519PrivateKey.generate())


def test_a_checkpoint_of_another_log_is_refused() -> None:
    """A key signs for the log of its own name only."""
    note = SIGNER.sign(Checkpoint("other", 1, bytes(32)).text())
    with pytest.raises(NoteRefused, match="of the log 'other'"):
        verify_checkpoint(note, SIGNER.verifier)


@pytest.mark.parametrize("text", ["no newline", "tab\t\n", ""])
def test_only_note_text_is_signed(text: str) -> None:
    """What could not be verified is not signed."""
    with pytest.raises(CallerError):
        SIGNER.sign(text)
