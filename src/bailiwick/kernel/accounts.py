"""Which uid is which process. A peer's role follows from the uid the kernel reports, never from what it says.

As root every process has a uid of its own, and every run too. As an ordinary user there is only one uid: each role is then held by it, the
processes cannot be told apart by credentials, and `bailiwick doctor` says so.
"""

from dataclasses import dataclass
from enum import StrEnum

from bailiwick.kernel.errors import NotFound

UID_BASE = 761_000  # above every distribution's static, dynamic (systemd: to 65,519) and subordinate defaults (to 589,824)
_RUN_UID_OFFSET = 1_000
RUN_UIDS = 60_000


class Role(StrEnum):
    SUPERVISOR = "supervisor"
    LAUNCHER = "launcher"
    RECORDER = "recorder"
    BROKER = "broker"
    GOVERNOR = "governor"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Account:
    """A process of ours: its name (`gateway-0`), its role, and the uid and gid it runs as."""

    name: str
    role: Role
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Accounts:
    members: tuple[Account, ...]
    separate: bool  # each process has a uid of its own

    @classmethod
    def for_machine(cls, *, uid: int, gid: int, workers: int) -> "Accounts":
        """`uid` and `gid` are the starter's: 0 gives each process an account of its own, any other uid is everybody's."""
        names = [(Role.LAUNCHER, "launcher"), (Role.RECORDER, "recorder"), (Role.BROKER, "broker"), (Role.GOVERNOR, "governor")]
        names += [(Role.GATEWAY, f"gateway-{number}") for number in range(workers)]
        if uid != 0:
            return cls(tuple(Account(name, role, uid, gid) for role, name in names), separate=False)
        numbered = enumerate(names)
        return cls(
            tuple(Account(name, role, *((0, 0) if role is Role.LAUNCHER else (UID_BASE + n, UID_BASE + n))) for n, (role, name) in numbered),
            separate=True,
        )

    def named(self, name: str) -> Account:
        for member in self.members:
            if member.name == name:
                return member
        raise NotFound(f"process {name!r} is unknown; must be one of {', '.join(member.name for member in self.members)}")

    def roles(self, uid: int) -> frozenset[Role]:
        """Every role a peer with this uid may act in; none for a stranger."""
        return frozenset(member.role for member in self.members if member.uid == uid)

    def may_act_as(self, uid: int, name: str) -> bool:
        return any(member.uid == uid and member.name == name for member in self.members)

    def workers(self) -> tuple[Account, ...]:
        return tuple(member for member in self.members if member.role is Role.GATEWAY)

    @staticmethod
    def run_uid(number: int) -> int:
        """The uid of the `number`-th sandbox of this machine, for an installation started as root."""
        return UID_BASE + _RUN_UID_OFFSET + number % RUN_UIDS
