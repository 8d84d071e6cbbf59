"""Who is calling: on the unix socket the uid the kernel reports, on TCP a bearer token. Never a run, never a process of ours."""

import hashlib
import hmac
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic

from bailiwick.api.problem import Unauthenticated
from bailiwick.governor.views import Operator, OperatorRole
from bailiwick.kernel.accounts import RUN_UIDS, UID_BASE, Accounts
from bailiwick.kernel.channel import Peer
from bailiwick.kernel.document import Section
from bailiwick.kernel.errors import CallerError, Forbidden

_OUR_UIDS = range(UID_BASE, Accounts.run_uid(0) + RUN_UIDS)  # processes and runs, of any installation on this machine
_SCHEME = "bearer "
_TOKEN_CHARACTERS_MAX = 512

OperatorName = Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9._-]{0,62}$")]


class OperatorSection(Section):
    """A person and what they may do. `user` or `uid` is who they are on the unix socket, `token_sha256` (hex) the digest of their token on TCP."""

    user: str | None = None
    uid: Annotated[int, pydantic.Field(ge=0, lt=2**32 - 1)] | None = None
    token_sha256: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    roles: Annotated[list[OperatorRole], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _reachable(self) -> "OperatorSection":
        if self.user is None and self.uid is None and self.token_sha256 is None:
            raise ValueError("has none of user, uid, token_sha256; give one, or nobody can be this operator")
        if self.user is not None and self.uid is not None:
            raise ValueError("has both user and uid; give one")
        if self.uid is not None and self.uid in _OUR_UIDS:
            raise ValueError(f"uid {self.uid} is of the range that runs and our processes have ({_OUR_UIDS.start} to {_OUR_UIDS.stop - 1}); give a person's")
        return self


@dataclass(frozen=True, slots=True)
class Caller:
    """One request's proof of who sends it. `peer` is None on TCP. `authorization` is the header field as sent."""

    peer: Peer | None
    authorization: str | None


class Directory:
    """`operators` of the configuration, and two who are admins unless it says otherwise: root, and the user who started the installation."""

    def __init__(self, configured: Mapping[str, OperatorSection], *, starter_uid: int, separate: bool) -> None:
        """`separate`: runs have uids of their own (the installation was started by root). CallerError for a user the machine does not know, and for
        two operators who cannot be told apart."""
        self._separate = separate
        self._by_uid: dict[int, Operator] = {}
        self._by_digest: list[tuple[str, Operator]] = []
        for name, section in configured.items():
            operator = Operator(name=name, roles=frozenset(section.roles))
            uid = section.uid if section.user is None else _uid(name, section.user)
            if uid is not None:
                if uid in self._by_uid:
                    raise CallerError(f"operators {self._by_uid[uid].name!r} and {name!r} are both uid {uid}; a uid is one operator")
                self._by_uid[uid] = operator
            if section.token_sha256 is not None:
                if any(digest == section.token_sha256 for digest, _ in self._by_digest):
                    raise CallerError(f"operator {name!r} has another operator's token; give each their own")
                self._by_digest.append((section.token_sha256, operator))
        for uid in (0, starter_uid):
            self._by_uid.setdefault(uid, Operator(name=unix_name(uid, configured), roles=frozenset({"admin"})))

    def authenticate(self, caller: Caller) -> Operator:
        """Forbidden for a peer who is known not to be an operator, Unauthenticated for one who proved nothing."""
        if caller.peer is not None:
            return self._of_peer(caller.peer)
        return self._of_token(caller.authorization)

    def _of_peer(self, peer: Peer) -> Operator:
        if peer.uid in _OUR_UIDS:
            raise Forbidden(f"uid {peer.uid} is a run's or a process of ours; neither is ever an operator")
        if not self._separate and peer.uid == os.getuid() and not _beside_us(peer.pid):
            raise Forbidden(f"process {peer.pid} is in another network namespace than the governor; a sandboxed process is never an operator")
        operator = self._by_uid.get(peer.uid)
        if operator is None:
            raise Forbidden(f"uid {peer.uid} is no operator; an admin adds it under `operators:` in bailiwick.yaml")
        return operator

    def _of_token(self, authorization: str | None) -> Operator:
        if authorization is None or not authorization.lower().startswith(_SCHEME):
            raise Unauthenticated("no bearer token; send `Authorization: Bearer TOKEN`")
        token = authorization[len(_SCHEME) :].strip()
        if not token or len(token) > _TOKEN_CHARACTERS_MAX:
            raise Unauthenticated(f"bearer token of {len(token)} characters; must be 1 to {_TOKEN_CHARACTERS_MAX}")
        given = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        found: Operator | None = None
        for digest, operator in self._by_digest:  # all of them: how long it takes says nothing about which
            if hmac.compare_digest(digest, given):
                found = operator
        if found is None:
            raise Unauthenticated("bearer token is nobody's; its SHA-256 must be an operator's `token_sha256` in bailiwick.yaml")
        return found


def may(operator: Operator, role: OperatorRole) -> bool:
    """Admin may all; whoever holds any role may read."""
    return role in operator.roles or "admin" in operator.roles or (role == "viewer" and bool(operator.roles))


def _beside_us(pid: int) -> bool:
    """Whether a process of our own uid shares our network namespace. One that cannot be asked does not."""
    try:
        return Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    except OSError:
        return False


def _uid(name: str, user: str) -> int:
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise CallerError(f"operator {name!r}: this machine has no user {user!r}; give an existing user, or `uid`") from None
    if uid in _OUR_UIDS:
        raise CallerError(f"operator {name!r}: user {user!r} has uid {uid}, of the range that runs and our processes have; give a person's")
    return uid


def unix_name(uid: int, taken: Mapping[str, object]) -> str:
    """What an operator is called whom nobody configured: the user's name, or the number where it is taken or the machine has none for it."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid-{uid}"
    return f"uid-{uid}" if name in taken else name
