"""The tree against the vectors of Certificate Transparency's implementations and against the recursive definition of RFC 6962."""

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.record.merkle import (
    EMPTY_ROOT,
    CompactRange,
    ProofRefused,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    subtrees,
    verify_consistency,
    verify_inclusion,
)

# github.com/google/certificate-transparency, merkletree/merkle_tree_test.cc (also transparency-dev/merkle, testonly).
LEAVES = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def defined_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, as written there."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(defined_root(leaves[:split]), defined_root(leaves[split:]))


def hashes(count: int) -> list[bytes]:
    return [leaf_hash(b"%d" % number) for number in range(count)]


class Nodes:
    def __init__(self, leaves: list[bytes]) -> None:
        self.leaves = leaves

    def __call__(self, level: int, index: int) -> bytes:
        part = self.leaves[index << level : (index + 1) << level]
        assert len(part) == 1 << level
        return defined_root(part)


def test_known_roots() -> None:
    """The roots of the eight trees that every implementation is tested with."""
    tree = CompactRange()
    assert tree.root() == EMPTY_ROOT
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        tree.append(leaf_hash(leaf))
        assert tree.root().hex() == root


def test_known_proofs() -> None:
    """Proofs from the same vectors."""
    node = Nodes([leaf_hash(leaf) for leaf in LEAVES])
    assert [each.hex() for each in inclusion_proof(0, 8, node)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert [each.hex() for each in consistency_proof(6, 8, node)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.integers(0, 2**64))
def test_appending_is_the_definition(size: int, choice: int) -> None:
    """Leaf by leaf, from a stored state, or by subtrees: the root is that of the definition, and the stored tiles are its nodes."""
    leaves, tiles = hashes(size), list[tuple[int, int, bytes]]()
    tree = CompactRange()
    for number, leaf in enumerate(leaves):
        if number == choice % (size + 1):
            tree = CompactRange.of_bytes(tree.size, bytes(tree))
        tree.append(leaf, tiles)
    assert tree.root() == defined_root(leaves) == root_of(size, Nodes(leaves))
    assert [(level, index) for level, index, _ in tiles] == [(8, number) for number in range(size // 256)]
    assert all(root == Nodes(leaves)(level, index) for level, index, root in tiles)
    middle = choice % (size + 1)
    whole = CompactRange()
    for start, end in ((0, middle), (middle, size)):
        for level, index in subtrees(start, end):
            whole.append_subtree(level, Nodes(leaves)(level, index))
    assert (whole.size, whole.root()) == (size, tree.root())


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.data())
def test_every_leaf_can_be_proved(size: int, data: st.DataObject) -> None:
    """An inclusion proof verifies, and no other leaf, place, size, root or proof does."""
    leaves = hashes(size)
    index = data.draw(st.integers(0, size - 1))
    root, proof = defined_root(leaves), inclusion_proof(index, size, Nodes(leaves))
    verify_inclusion(leaves[index], index, size, proof, root)
    wrong = [
        (leaf_hash(b"x"), index, size, proof, root),
        (leaves[index], index, size, proof, leaf_hash(b"x")),
        (leaves[index], index, size, [*proof, root], root),
        (leaves[index], size, size, proof, root),
    ]
    wrong += [(leaves[index], other, size, proof, root) for other in {0, size - 1, (index + 1) % size} - {index}]
    wrong += [(leaves[index], index, size, proof[:-1], root)] if proof else []
    for arguments in wrong:
        with pytest.raises(ProofRefused):
            verify_inclusion(*arguments)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.data())
def test_every_extension_can_be_proved(second: int, data: st.DataObject) -> None:
    """A consistency proof verifies; with another old root, new root or proof it does not."""
    first = data.draw(st.integers(1, second))
    leaves = hashes(second)
    old, new = defined_root(leaves[:first]), defined_root(leaves)
    proof = consistency_proof(first, second, Nodes(leaves))
    verify_consistency(first, second, proof, old, new)
    other = leaf_hash(b"x")
    wrong = [(first, second, proof, other, new), (first, second, proof, old, other), (first, second, [*proof, other], old, new)]
    wrong += [(first, second, [*proof[:number], other, *proof[number + 1 :]], old, new) for number in range(len(proof))]
    wrong += [(first, second, proof[:-1], old, new)] if proof else []
    wrong += [(second, first, proof, old, new), (0, second, proof, old, new)] if first != second else []
    for arguments in wrong:
        with pytest.raises(ProofRefused):
            verify_consistency(*arguments)


def test_what_cannot_be_is_refused() -> None:
    """A state that is none, a proof of what is not there, a subtree out of place."""
    with pytest.raises(ValueError, match="3 leaves has 2 roots"):
        CompactRange(3, [EMPTY_ROOT])
    with pytest.raises(ValueError, match="not in a tree"):
        inclusion_proof(3, 3, Nodes(hashes(3)))
    with pytest.raises(ValueError, match="cannot extend"):
        consistency_proof(4, 3, Nodes(hashes(3)))
    tree = CompactRange()
    tree.append(EMPTY_ROOT)
    with pytest.raises(ValueError, match="multiple of 2"):
        tree.append_subtree(1, EMPTY_ROOT)
