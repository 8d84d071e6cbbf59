"""What a sandbox is made from. The dangerous settings cannot be expressed: there is no field for a capability, a device, a host namespace, an engine
socket, uid 0, or a mount that is writable outside the workspace."""

import msgspec

from bailiwick.kernel import limits


class SandboxLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard bounds on one run. `required` names those the operator wrote down: a backend that cannot enforce one of them refuses the run."""

    cpu: float = 1.0  # cores
    memory_bytes: int = limits.RUN_MEMORY_BYTES
    pids: int = limits.RUN_PIDS
    open_files: int = limits.RUN_OPEN_FILES
    disk_bytes: int = limits.RUN_DISK_BYTES
    required: frozenset[str] = frozenset()


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`command` is found on `path_entries` inside. `trees` appear read-only at their own paths. `workspace` is copied in and is the working directory
    /workspace. `ports` are served besides 80 and 443. `environment` is set as given; the launcher adds only what the sandbox itself needs."""

    command: list[str]
    environment: dict[str, str]
    trees: list[str] = []
    workspace: str | None = None
    ports: list[int] = []
    limits: SandboxLimits = SandboxLimits()
    trust_bundle: str  # PEM: the interception authority's certificate, the sandbox's only trust root
    backend: str = "bubblewrap"
