"""The RFC 6962 Merkle tree (section 2.1), without I/O: incremental append, root, inclusion and consistency proofs, and their verification.

A proof is made from the roots of perfect subtrees, which the caller looks up: `Node(level, index)` is the root over the 2**level leaves from
index * 2**level on. Level 0 is a leaf hash. Which of them are stored and which are computed is the caller's trade.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256

from bailiwick.kernel.errors import BailiwickError

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
TILE_LEVELS = 8  # C2SP tlog-tiles: a tile is 2**8 hashes wide

Node = Callable[[int, int], bytes]


class ProofRefused(BailiwickError):
    """The proof does not show what it claims to."""

    code = "proof"


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """A tree reduced to what appending and its root need: the roots of its perfect subtrees, largest first, one for each bit set in its size."""

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self.hashes = list(hashes)
        if size < 0 or len(self.hashes) != size.bit_count() or any(len(known) != HASH_BYTES for known in self.hashes):
            raise ValueError(f"a tree of {size} leaves has {max(size, 0).bit_count()} roots of {HASH_BYTES} bytes; got {len(self.hashes)}")

    @classmethod
    def of_bytes(cls, size: int, packed: bytes) -> "CompactRange":
        return cls(size, [packed[start : start + HASH_BYTES] for start in range(0, len(packed), HASH_BYTES)])

    def __bytes__(self) -> bytes:
        return b"".join(self.hashes)

    def copy(self) -> "CompactRange":
        return CompactRange(self.size, self.hashes)

    def append(self, leaf: bytes, tiles: list[tuple[int, int, bytes]] | None = None) -> None:
        """Adds a leaf hash. What it completes at levels 8, 16, ... is added to `tiles` as (level, index, hash)."""
        hashes, size, level = self.hashes, self.size, 0
        rest = size
        while rest & 1:
            leaf = sha256(b"\x01" + hashes.pop() + leaf).digest()
            rest >>= 1
            level += 1
            if tiles is not None and level % TILE_LEVELS == 0:
                tiles.append((level, rest, leaf))
        hashes.append(leaf)
        self.size = size + 1

    def append_subtree(self, level: int, root: bytes) -> None:
        """Adds 2**level leaves at once by their root. ValueError unless the tree's size is a multiple of that."""
        if level < 0 or self.size % (1 << level):
            raise ValueError(f"a subtree of level {level} cannot stand at leaf {self.size}; its place must be a multiple of 2**{level}")
        rest = self.size >> level
        while rest & 1:
            root = node_hash(self.hashes.pop(), root)
            rest >>= 1
        self.hashes.append(root)
        self.size += 1 << level

    def root(self) -> bytes:
        return _fold(self.hashes) if self.hashes else EMPTY_ROOT


def subtrees(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The fewest perfect subtrees (level, index) that cover leaves `start` to before `end`, left to right."""
    while start < end:
        level = (end - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        yield level, start >> level
        start += 1 << level


def root_of(size: int, node: Node) -> bytes:
    return _range_root(0, size, node) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """PATH(m, D[n]) of RFC 6962, 2.1.1: the siblings from leaf `index` up to the root of the first `size` leaves."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}; must be 0 to {size - 1}")
    proof, start, end = [], 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_range_root(middle, end, node))
            end = middle
        else:
            proof.append(_range_root(start, middle, node))
            start = middle
    return proof[::-1]


def consistency_proof(first: int, second: int, node: Node) -> list[bytes]:
    """PROOF(m, D[n]) of RFC 6962, 2.1.2: that the tree of `second` leaves begins with the tree of `first`."""
    if not 0 < first <= second:
        raise ValueError(f"a tree of {second} leaves cannot extend one of {first}; the first must be 1 to {second}")
    proof, start, end = [], 0, second
    while end != first:
        middle = start + _split(end - start)
        if first <= middle:
            proof.append(_range_root(middle, end, node))
            end = middle
        else:
            proof.append(_range_root(start, middle, node))
            start = middle
    if start:  # else what is left is the whole first tree, whose root the verifier has
        proof.append(_range_root(start, end, node))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162, 2.1.3.2. Raises ProofRefused unless `leaf` (a leaf hash) stands at `index` of the tree of `size` leaves with this root."""
    if not 0 <= index < size:
        raise ProofRefused(f"leaf {index} is not in a tree of {size}")
    place, last, reached = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofRefused(f"inclusion proof of leaf {index} in {size} is too long")
        if place & 1 or place == last:
            reached = node_hash(sibling, reached)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            reached = node_hash(reached, sibling)
        place >>= 1
        last >>= 1
    if last != 0:
        raise ProofRefused(f"inclusion proof of leaf {index} in {size} is too short")
    if reached != root:
        raise ProofRefused(f"inclusion proof of leaf {index} in {size} leads to another root")


def verify_consistency(first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes) -> None:
    """RFC 9162, 2.1.4.2. Raises ProofRefused unless the tree of `second` leaves begins with the whole tree of `first`."""
    if not 0 < first <= second:
        raise ProofRefused(f"a tree of {second} leaves cannot extend one of {first}")
    if first == second:
        if proof:
            raise ProofRefused(f"consistency proof of {first} with itself is not empty")
        if first_root != second_root:
            raise ProofRefused(f"two trees of {first} leaves with different roots")
        return
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, first_root)
    if not path:
        raise ProofRefused(f"consistency proof of {first} in {second} is empty")
    place, last = first - 1, second - 1
    while place & 1:
        place >>= 1
        last >>= 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofRefused(f"consistency proof of {first} in {second} is too long")
        if place & 1 or place == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        place >>= 1
        last >>= 1
    if last != 0:
        raise ProofRefused(f"consistency proof of {first} in {second} is too short")
    if old != first_root:
        raise ProofRefused(f"the tree of {second} leaves does not begin with the tree of {first} that was signed")
    if new != second_root:
        raise ProofRefused(f"consistency proof of {first} in {second} leads to another root")


def _split(size: int) -> int:
    """The largest power of two smaller than `size` (at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def _range_root(start: int, end: int, node: Node) -> bytes:
    """MTH(D[start:end]) for a range that the tree's recursion meets: its largest subtree stands first."""
    return _fold([node(level, index) for level, index in subtrees(start, end)])


def _fold(roots: Sequence[bytes]) -> bytes:
    reached = roots[-1]
    for left in reversed(roots[:-1]):
        reached = node_hash(left, reached)
    return reached
