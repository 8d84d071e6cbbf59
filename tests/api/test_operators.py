import hashlib
import os
import subprocess
import sys
from typing import Any

import pydantic
import pytest

from bailiwick.api.operators import Caller, Directory, OperatorSection, may
from bailiwick.api.problem import Unauthenticated
from bailiwick.governor.views import Operator
from bailiwick.kernel.accounts import RUN_UIDS, Accounts
from bailiwick.kernel.channel import Peer
from bailiwick.kernel.errors import CallerError, Forbidden


def section(**fields: Any) -> OperatorSection:
    return OperatorSection.model_validate({"roles": ["viewer"], **fields})


def by_uid(uid: int, pid: int = 1) -> Caller:
    return Caller(Peer(pid, uid, uid), None)


def directory(starter: int = 0, separate: bool = True, **configured: OperatorSection) -> Directory:
    return Directory(configured, starter_uid=starter, separate=separate)


def test_root_and_the_starter_are_admins_unless_the_configuration_says_otherwise() -> None:
    """Without `operators:` the installation is its starter's and root's; with it, what is written there counts."""
    assert directory(starter=4242).authenticate(by_uid(4242)) == Operator(name="uid-4242", roles=frozenset({"admin"}))
    assert directory().authenticate(by_uid(0)) == Operator(name="root", roles=frozenset({"admin"}))
    assert directory(ana=section(user="root")).authenticate(by_uid(0)) == Operator(name="ana", roles=frozenset({"viewer"}))


def test_a_name_is_one_person() -> None:
    """A unix user whose name is a configured operator's with another uid does not become that operator."""
    assert directory(root=section(uid=5000)).authenticate(by_uid(0)).name == "uid-0"


def test_a_stranger_is_nobody() -> None:
    """A uid that is not an operator's is refused, and told how it could become one."""
    with pytest.raises(Forbidden, match="uid 4243 is no operator; an admin adds it"):
        directory().authenticate(by_uid(4243))


@pytest.mark.parametrize(
    "uid", [Accounts.run_uid(0), Accounts.run_uid(RUN_UIDS - 1), *(a.uid for a in Accounts.for_machine(uid=0, gid=0, workers=2).members if a.uid)]
)
def test_a_run_or_a_process_of_ours_is_never_an_operator(uid: int) -> None:
    """Not by default, not as the starter, not by configuration."""
    with pytest.raises(Forbidden, match="is ever an operator"):
        directory(starter=uid).authenticate(by_uid(uid))
    with pytest.raises(pydantic.ValidationError, match="give a person's"):
        section(uid=uid)


def test_as_an_ordinary_user_a_process_in_another_network_namespace_is_refused() -> None:
    """There, a run has the operator's own uid: the namespace it is sealed in tells it apart."""
    ordinary = directory(starter=os.getuid(), separate=False)
    assert ordinary.authenticate(by_uid(os.getuid(), os.getpid())).roles == {"admin"}
    with pytest.raises(Forbidden, match="network namespace"):
        ordinary.authenticate(by_uid(os.getuid(), 2**22 + 1))  # gone: it cannot be asked
    sealed = subprocess.Popen(["unshare", "-Urn", sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert sealed.stdout is not None
        assert sealed.stdout.readline() == b"\n"
        with pytest.raises(Forbidden, match="network namespace"):
            ordinary.authenticate(by_uid(os.getuid(), sealed.pid))
    finally:
        sealed.communicate(b"\n", timeout=10)


def test_a_token_is_known_by_its_digest() -> None:
    """On TCP only a configured token's holder is somebody; everything else is told what to send."""
    token = "t0ken"
    known = directory(bo=section(token_sha256=hashlib.sha256(token.encode()).hexdigest(), roles=["approver"]))
    assert known.authenticate(Caller(None, f"Bearer {token}")).name == "bo"
    for wrong in (None, "", token, "Basic x", "Bearer ", "Bearer t0ke", "Bearer " + "x" * 1000):
        with pytest.raises(Unauthenticated):
            known.authenticate(Caller(None, wrong))


def test_a_token_does_not_help_on_the_unix_socket() -> None:
    """There the kernel says who it is; a stolen token makes a stranger nobody else."""
    known = directory(bo=section(token_sha256=hashlib.sha256(b"t").hexdigest(), roles=["admin"]))
    with pytest.raises(Forbidden):
        known.authenticate(Caller(Peer(1, 4243, 4243), "Bearer t"))


def test_operators_who_cannot_be_told_apart_are_refused() -> None:
    """One uid, or one token, is one operator; one with neither is nobody; an unknown user is named."""
    with pytest.raises(CallerError, match="a uid is one operator"):
        directory(a=section(uid=5), b=section(uid=5))
    with pytest.raises(CallerError, match="another operator's token"):
        directory(a=section(token_sha256="0" * 64), b=section(token_sha256="0" * 64))
    with pytest.raises(CallerError, match="no user 'no-such-user'"):
        directory(a=section(user="no-such-user"))
    with pytest.raises(pydantic.ValidationError, match="nobody can be this operator"):
        section()


def test_roles() -> None:
    """Admin may all, every role may read, and none of the others includes another."""
    roles = ("viewer", "approver", "operator", "admin")
    allowed = {held: {role for role in roles if may(Operator(name="x", roles=frozenset({held})), role)} for held in roles}
    assert allowed == {
        "viewer": {"viewer"}, "approver": {"viewer", "approver"}, "operator": {"viewer", "operator"}, "admin": set(roles),
    }  # fmt: skip
    assert not may(Operator(name="x", roles=frozenset()), "viewer")
