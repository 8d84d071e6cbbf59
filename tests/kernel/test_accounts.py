"""Accounts: who is who by uid."""

import pytest

from bailiwick.kernel.accounts import RUN_UIDS, UID_BASE, Account, Accounts, Role
from bailiwick.kernel.errors import NotFound


def test_as_root_every_process_has_a_uid_of_its_own() -> None:
    """The launcher alone is root; no two others share; no uid is one a distribution hands out."""
    accounts = Accounts.for_machine(uid=0, gid=0, workers=3)
    assert accounts.separate
    uids = [member.uid for member in accounts.members]
    assert len(set(uids)) == len(uids) == 7
    assert [member.name for member in accounts.members if member.uid == 0] == ["launcher"]
    assert all(member.uid >= UID_BASE for member in accounts.members if member.uid)
    assert all(member.uid == member.gid for member in accounts.members)


def test_as_root_a_uid_has_one_role() -> None:
    """A worker may act as itself and as nobody else; a stranger as nobody."""
    accounts = Accounts.for_machine(uid=0, gid=0, workers=2)
    for member in accounts.members:
        assert accounts.roles(member.uid) == {member.role}
        assert [other.name for other in accounts.members if accounts.may_act_as(member.uid, other.name)] == [member.name]
    for stranger in (1, 1000, 65534, UID_BASE - 1, UID_BASE + 500, -1):
        assert accounts.roles(stranger) == frozenset()
        assert not any(accounts.may_act_as(stranger, member.name) for member in accounts.members)


def test_as_an_ordinary_user_one_uid_has_every_role() -> None:
    """They cannot be told apart, and that is said."""
    accounts = Accounts.for_machine(uid=1000, gid=1001, workers=2)
    assert not accounts.separate
    assert {(member.uid, member.gid) for member in accounts.members} == {(1000, 1001)}
    assert accounts.roles(1000) == set(Role) - {Role.SUPERVISOR}
    assert accounts.roles(0) == frozenset()


def test_workers_are_the_gateway_s() -> None:
    """By number."""
    accounts = Accounts.for_machine(uid=0, gid=0, workers=3)
    assert [worker.name for worker in accounts.workers()] == ["gateway-0", "gateway-1", "gateway-2"]
    assert accounts.named("gateway-1") == accounts.workers()[1] == Account("gateway-1", Role.GATEWAY, UID_BASE + 5, UID_BASE + 5)


def test_a_name_nobody_has_is_told() -> None:
    """Not a StopIteration, which would end a generator in silence."""
    with pytest.raises(NotFound, match="process 'nobody' is unknown; must be one of launcher, "):
        Accounts.for_machine(uid=0, gid=0, workers=1).named("nobody")


@pytest.mark.parametrize("workers", [1, 64, 900])
def test_runs_have_uids_that_no_process_has(workers: int) -> None:
    """And that stay within their range, whatever the number."""
    processes = {member.uid for member in Accounts.for_machine(uid=0, gid=0, workers=workers).members}
    uids = {Accounts.run_uid(number) for number in (0, 1, RUN_UIDS - 1, RUN_UIDS, 10**12)}
    assert not uids & processes
    assert Accounts.run_uid(RUN_UIDS) == Accounts.run_uid(0)
    assert max(uids) < 2**31
