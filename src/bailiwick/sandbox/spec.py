"""What a sandbox is made from. The dangerous settings cannot be expressed: there is no field for a capability, a device, a host namespace, an engine
socket, uid 0, or a mount that is writable outside the workspace."""

import math
import re
from pathlib import Path, PurePosixPath

import msgspec

from bailiwick.kernel import limits
from bailiwick.kernel.errors import CallerError

_TREES_NEVER = ("/proc", "/sys", "/dev", "/run", "/boot", "/etc")  # nor anything below
_TREES_NEVER_WHOLE = ("/", "/home", "/root", "/var", "/tmp", "/usr", "/lib", "/bin", "/sbin", "/lib64", "/opt", "/srv", "/mnt", "/media", "/workspace")  # noqa: S108
_WORKSPACES_NEVER_IN = ("/home", "/usr", "/var")  # directly: somebody's whole home, /var/lib, /var/log
_HIDDEN_IN_A_HOME = re.compile(r"/(root|home/[^/]+)/\.")  # .ssh, .aws, .config, .cache and whatever comes next
_ENGINE_SOCKETS = re.compile(r"(docker|podman|containerd|crio|cri-dockerd|buildkitd)\.sock$")
_TREES_MAX, _PORTS_MAX, _COMMAND_MAX, _ENVIRONMENT_MAX, _VALUE_BYTES_MAX = 64, 64, 4_096, 1_024, 128 * 1024
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# A name that says secret, unless its value says that it is none; and values that are secrets whatever they are called.
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|KEY|AUTH)($|_)", re.IGNORECASE)
_NOT_A_SECRET = re.compile(
    r"|(.*(placeholder|bailiwick|dummy|example|unused|not-?a-?(real|secret)|changeme|none|null|true|false|x{3,}).*)|/.*|\d{1,6}", re.IGNORECASE
)
_SECRET_VALUE = re.compile(
    r"(AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|sk-(?!placeholder|bailiwick)[A-Za-z0-9_-]{16,}"
    r"|xox[abposr]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.|://[^/\s:@]+:[^/\s:@]+@"
)
_LIMITS = ("cpu", "memory_bytes", "pids", "open_files", "disk_bytes")
_MEMORY_BYTES_MIN, _DISK_BYTES_MIN = 16 * limits.MIB, limits.MIB


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


def lint(spec: SandboxSpec, *, state: Path | None = None) -> None:
    """CallerError for the first thing that must not be, naming field, value, expectation and the way out. `state` is the installation's own directory,
    which no sandbox may see. Looks at the file system, so that a link to a forbidden place is what it leads to."""
    _lint_command(spec.command)
    _lint_environment(spec.environment)
    if len(spec.trees) > _TREES_MAX:
        raise CallerError(f"trees: {len(spec.trees)} are given; must be at most {_TREES_MAX}; give one that holds them")
    for tree in spec.trees:
        _lint_tree(tree, state)
    if len(set(spec.trees)) != len(spec.trees):
        raise CallerError("trees: one is given twice; give each once")
    if spec.workspace is not None:
        _lint_workspace(spec.workspace, state)
    if len(spec.ports) > _PORTS_MAX:
        raise CallerError(f"ports: {len(spec.ports)} are given; must be at most {_PORTS_MAX}; attempts on the others are recorded all the same")
    for port in spec.ports:
        if not 1 <= port <= 65_535 or port == 53:
            raise CallerError(f"ports: {port}; must be 1 to 65535 and not 53, which is the sandbox's resolver; leave it out")
    _lint_limits(spec.limits)


def _lint_command(command: list[str]) -> None:
    if not command or not command[0]:
        raise CallerError("command: is empty; must name a program, then its arguments")
    if len(command) > _COMMAND_MAX or sum(len(word.encode("utf-8", "surrogateescape")) for word in command) > _VALUE_BYTES_MAX:
        raise CallerError(f"command: is too long; must be at most {_COMMAND_MAX} words and {_VALUE_BYTES_MAX} bytes; put it into a file of the workspace")
    for word in command:
        if "\0" in word:
            raise CallerError(f"command: {word!r} holds a NUL; no argument of a program can; leave it out")


def _lint_environment(environment: dict[str, str]) -> None:
    if len(environment) > _ENVIRONMENT_MAX:
        raise CallerError(f"environment: {len(environment)} variables; must be at most {_ENVIRONMENT_MAX}; put them into a file of the workspace")
    for name, value in environment.items():
        if not _ENVIRONMENT_NAME.fullmatch(name):
            raise CallerError(f"environment: {name!r} is no name of a variable; must be letters, digits and _ and not begin with a digit; rename it")
        if "\0" in value or len(value.encode("utf-8", "surrogateescape")) > _VALUE_BYTES_MAX:
            raise CallerError(f"environment: {name} is longer than {_VALUE_BYTES_MAX} bytes or holds a NUL; put it into a file of the workspace")
        secret_by_name = _SECRET_NAME.search(name) is not None and _NOT_A_SECRET.fullmatch(value) is None
        if secret_by_name or _SECRET_VALUE.search(value):
            raise CallerError(
                f"environment: {name} looks like a secret (its value is not shown); a sandbox holds none: name it under `credentials`, which the "
                "gateway injects, and give the program a value with `placeholder` in it if it insists on one"
            )


def _lint_tree(tree: str, state: Path | None) -> None:
    shown = f"trees: {tree!r}"
    if "\0" in tree or not tree.startswith("/") or str(PurePosixPath(tree)) != tree or ".." in tree.split("/"):
        raise CallerError(f"{shown}; must be an absolute path without `..`, `.` and doubled slashes; write it out")
    try:
        real = Path(tree).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CallerError(f"{shown} is not there; must be a file or directory of this machine; install or correct it") from error
    for place in (Path(tree), real):
        lint_tree_at(shown, place, state)
    if real.is_socket():
        raise CallerError(f"{shown} is a socket; an engine's socket is the whole machine; there is no way to give a sandbox one")
    if not (real.is_file() or real.is_dir()):
        raise CallerError(f"{shown} is a device or pipe; must be a file or directory; no device is shown in a sandbox")


def lint_tree_at(shown: str, place: Path, state: Path | None) -> None:
    """Whether what lies at `place` may be shown, by its path alone; `shown` is how it was named."""
    if str(place) in _TREES_NEVER_WHOLE or str(place.parent) == "/home":
        raise CallerError(f"{shown} is too much; must not be {place}, which holds what is not the agent's; give the directory below that it needs")
    if any(place.is_relative_to(never) for never in _TREES_NEVER):
        raise CallerError(f"{shown} lies in {place.parts[1]}; must not be below {', '.join(_TREES_NEVER)}; copy what is needed into the workspace")
    if _ENGINE_SOCKETS.search(str(place)):
        raise CallerError(f"{shown} is a socket; an engine's socket is the whole machine; there is no way to give a sandbox one")
    _lint_state(shown, place, state)


def _lint_workspace(workspace: str, state: Path | None) -> None:
    shown = f"workspace: {workspace!r}"
    if "\0" in workspace or not workspace.startswith("/") or ".." in workspace.split("/"):
        raise CallerError(f"{shown}; must be an absolute path without `..`; write it out")
    try:
        real = Path(workspace).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CallerError(f"{shown} is not there; must be a directory; make it or correct the path") from error
    if not real.is_dir():
        raise CallerError(f"{shown} is not a directory; must be one; give the directory that holds it")
    lint_workspace_at(shown, real, state)


def lint_workspace_at(shown: str, real: Path, state: Path | None) -> None:
    """Whether the directory `real` may be copied in, by its path alone; `shown` is how it was named."""
    if str(real) in _TREES_NEVER_WHOLE or str(real.parent) in _WORKSPACES_NEVER_IN or any(real.is_relative_to(never) for never in _TREES_NEVER):
        raise CallerError(f"{shown} is too much; must not be {real}, which holds what is not the agent's; give a directory of its own")
    if _HIDDEN_IN_A_HOME.match(str(real)):
        raise CallerError(f"{shown} is {real}, where programs keep keys and sessions; must not be hidden in a home; give a directory of its own")
    _lint_state(shown, real, state)


def _lint_state(shown: str, place: Path, state: Path | None) -> None:
    if state is not None and (place.is_relative_to(state) or state.is_relative_to(place)):
        raise CallerError(f"{shown} holds or lies in {state}, where this installation keeps its record and keys; give a directory apart from it")


def _lint_limits(bounds: SandboxLimits) -> None:
    checks = (
        ("cpu", bounds.cpu, 0.01, 4_096), ("memory_bytes", bounds.memory_bytes, _MEMORY_BYTES_MIN, 1 << 50), ("pids", bounds.pids, 1, 4_000_000),
        ("open_files", bounds.open_files, 16, 1_048_576), ("disk_bytes", bounds.disk_bytes, _DISK_BYTES_MIN, 1 << 50),
    )  # fmt: skip
    for name, value, least, most in checks:
        if not (math.isfinite(value) and least <= value <= most):
            raise CallerError(f"limits.{name}: {value}; must be {least} to {most}; every limit bounds something")
    for name in bounds.required:
        if name not in _LIMITS:
            raise CallerError(f"limits.required: {name!r}; must be one of {', '.join(_LIMITS)}; a limit nobody knows cannot be enforced")
