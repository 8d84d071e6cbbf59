"""Classic BPF: small programs with labels into the bytes the kernel takes, for seccomp filters and for socket filters.

Jumps go forward only and a condition's jump at most 255 instructions far, as the machine demands; both are checked here rather than by the kernel.
"""

import ctypes
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from bailiwick.kernel.errors import BackendError

LD_W_ABS, LD_H_ABS, LD_B_ABS = 0x20, 0x28, 0x30
LD_B_IND, LDX_B_MSH = 0x50, 0xB1
AND_K = 0x54
JMP, JEQ, JGT, JGE, JSET = 0x05, 0x15, 0x25, 0x35, 0x45
RET = 0x06

_INSTRUCTION = struct.Struct("=HBBI")
INSTRUCTIONS_MAX = 4096  # BPF_MAXINSNS


@dataclass(frozen=True, slots=True)
class Label:
    """A place a jump may name."""

    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction; `then` and `otherwise` are labels, None is the next instruction."""

    code: int
    value: int = 0
    then: str | None = None
    otherwise: str | None = None


def assemble(program: Iterable[Step | Label]) -> bytes:
    """The kernel's `struct sock_filter` array. BackendError for a jump that goes back, too far, or nowhere."""
    steps: list[Step] = []
    places: dict[str, int] = {}
    for item in program:
        if isinstance(item, Label):
            places[item.name] = len(steps)
        else:
            steps.append(item)
    if not 0 < len(steps) <= INSTRUCTIONS_MAX:
        raise BackendError(f"filter of {len(steps)} instructions; must be 1 to {INSTRUCTIONS_MAX}")

    def distance(at: int, label: str | None) -> int:
        if label is None:
            return 0
        far = places.get(label, -1) - at - 1
        if not 0 <= far <= 255 or at + 1 + far >= len(steps):
            raise BackendError(f"filter jump to {label!r} from {at} goes {far} instructions; must go 0 to 255")
        return far

    raw = bytearray()
    for at, step in enumerate(steps):
        if step.code == JMP:
            raw += _INSTRUCTION.pack(JMP, 0, 0, distance(at, step.then))
        else:
            raw += _INSTRUCTION.pack(step.code, distance(at, step.then), distance(at, step.otherwise), step.value & 0xFFFFFFFF)
    return bytes(raw)


def length(program: bytes) -> int:
    return len(program) // _INSTRUCTION.size


class ProgramHeader(ctypes.Structure):
    """`struct sock_fprog`. `of` keeps the program's memory alive as long as the header."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))
    memory: ctypes.Array[ctypes.c_char]

    @classmethod
    def of(cls, program: bytes) -> "ProgramHeader":
        memory = ctypes.create_string_buffer(program, len(program))
        header = cls(length(program), ctypes.addressof(memory))
        header.memory = memory
        return header
