"""The broker's memory stays out of swap where the machine lets it: a secret that was paged out outlives the process on a disk."""

import ctypes
import resource

_libc = ctypes.CDLL(None, use_errno=True)

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # ONFAULT: lock what is touched, do not touch what is not


def may_lock_memory() -> None:
    """With the starter's rights: without a bound, or the first allocation above it would fail once everything to come is locked."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    wished = resource.RLIM_INFINITY
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (wished, wished))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def lock_memory() -> bool:
    """Whether it is locked, now and for what is allocated later. Not where a bound is set: running into it would end the process in the middle."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return False
    return bool(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)
