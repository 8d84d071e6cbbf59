"""Where a connection leads and what a request on it is for: the door it came through, the authority that was verified, the host it may name.

A `Host` field never decides where a request goes; one that names another host than the connection is authorised for is refused.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal, NamedTuple

from bailiwick.critic.enforcement import ModelRoute
from bailiwick.gateway import models, names
from bailiwick.gateway.actions import normalise_path
from bailiwick.gateway.layers.chunked import ProtocolViolation
from bailiwick.gateway.layers.heads import RequestHead
from bailiwick.gateway.runs import Run
from bailiwick.gateway.upstream import Destination
from bailiwick.kernel.errors import CallerError

PROXY_PORT = 3128
AUTHORITIES_MAX = 1_024
_SYNTHETIC = re.compile(r"198\.1[89]\.|c61[23]:")  # 198.18.0.0/15, and as the end of an IPv6 address
_DEFAULT_PORTS = {"http": 80, "https": 443}

Via = Literal["transparent", "proxy", "connect", "model-base"]


@dataclass(frozen=True, slots=True)
class Door:
    """`name` is the authority: a name, or an address where none is known. `known` says that it is a name the client has to mean."""

    via: Via
    name: str
    port: int
    known: bool


class Target(NamedTuple):
    """One request's destination; `path` is its target in origin form, to be forwarded."""

    via: Via
    scheme: str
    name: str
    port: int
    path: str
    destination: Destination
    route: ModelRoute | None = None
    endpoint: str | None = None

    @property
    def authority(self) -> bytes:
        """The Host field upstream."""
        host = f"[{self.name}]" if ":" in self.name else self.name
        return (host if _DEFAULT_PORTS[self.scheme] == self.port else f"{host}:{self.port}").encode("ascii")


def door(run: Run, address: str, port: int) -> Door:
    """The door behind a dialled address: one of ours, a name's synthetic address, or an address as such."""
    plain = _plain(address)
    name = run.names.name_of(plain)
    if name == names.PROXY_NAME and port == PROXY_PORT:
        return Door("proxy", name, port, True)
    if name == names.MODELS_NAME and port == 80:
        return Door("model-base", name, port, True)
    return Door("transparent", name or plain, port, name is not None)


def connect_door(run: Run, head: RequestHead) -> Door:
    """Behind a CONNECT. Raises ProtocolViolation for an authority that is none."""
    host, port = _split(head.authority)
    if port is None or not 0 < port < 65536:
        raise ProtocolViolation("invalid-target", "the port of CONNECT is not one")
    name = _named(run, host)
    return Door("connect", name, port, True)


def target_of(run: Run, door: Door, head: RequestHead, *, secure: bool) -> Target:
    """What a request is for. Raises ProtocolViolation when it names another host than the connection is authorised for."""
    scheme = "https" if secure else "http"
    if door.name == names.MODELS_NAME and door.port == 80 and not secure:
        return _model_base(run, door.via, head)
    if door.via == "proxy":
        if head.form != "absolute":
            raise ProtocolViolation("not-absolute", "a request to the proxy must have an absolute target")
        scheme, _, rest = head.target.partition("://")
        scheme = scheme.lower()
        name, port = _authority(run, head.authority)
        if name == names.MODELS_NAME and scheme == "http" and port in (None, 80):  # a client that takes no exception from its proxy
            return _model_base(run, door.via, head)
        if port is not None and not 0 < port < 65536:
            raise ProtocolViolation("invalid-target", "the port of the target is not one")
        return _target(run, "proxy", scheme, name, port or _DEFAULT_PORTS[scheme], _origin(rest), head)
    name, port = _authority(run, head.authority)
    if name != door.name or (port is not None and port != door.port):
        raise ProtocolViolation("host-mismatch", "Host names another host than the one connected to")
    if head.form == "absolute":
        if head.target.partition("://")[0].lower() != scheme:
            raise ProtocolViolation("host-mismatch", "the target's scheme is not the connection's")
        return _target(run, door.via, scheme, door.name, door.port, _origin(head.target.partition("://")[2]), head)
    return _target(run, door.via, scheme, door.name, door.port, head.target, head)


def _target(run: Run, via: Via, scheme: str, name: str, port: int, path: str, head: RequestHead) -> Target:
    pinned = run.upstreams.pinned_port(name)
    if pinned is not None and port not in (pinned, _DEFAULT_PORTS[scheme]):  # what is decided is where it goes: a pin leads to one port only
        raise ProtocolViolation("pinned-port", f"{name} is pinned to port {pinned}; ask for that port or for {_DEFAULT_PORTS[scheme]}", status=403)
    route = run.models.get(name)
    endpoint = None
    if route is not None:
        endpoint = _endpoint(route, head.method, path)
        if endpoint is not None and (scheme, port) != ("https", 443) and pinned is None:
            # A model is decided by its provider and name; where it is asked must then be where that provider is.
            raise ProtocolViolation("model-destination", f"models of {route.provider} are called at https://{name}, not at {scheme} port {port}", status=403)
    return Target(via, scheme, name, port, path, run.upstreams.destination(name, port, scheme), route, endpoint)


def _endpoint(route: ModelRoute, method: str, path: str) -> str | None:
    """By the normal form of the path, so that no spelling of an endpoint passes as plain HTTP."""
    try:
        normal, _ = normalise_path(path.partition("?")[0])
    except CallerError:
        return None  # refused when the action is made
    return models.endpoint_of(route.dialect, method, normal)


def _model_base(run: Run, via: Via, head: RequestHead) -> Target:
    name, port = _authority(run, head.authority)
    if name != names.MODELS_NAME or port not in (None, 80):
        raise ProtocolViolation("host-mismatch", "Host names another host than the one connected to")
    path = head.target if head.form == "origin" else _origin(head.target.partition("://")[2])
    provider, slash, rest = path[1:].partition("/")
    route = run.providers.get(provider)
    if route is None or not slash:
        known = ", ".join(sorted(run.providers)) or "none"
        raise ProtocolViolation("unknown-provider", f"the path must begin with a provider of this run ({known})", status=404)
    path = "/" + rest
    return Target(via, "https", route.host, 443, path, run.upstreams.destination(route.host, 443, "https"), route, _endpoint(route, head.method, path))


def _origin(rest: str) -> str:
    """The origin form of what follows `scheme://`."""
    at = min((index for index in (rest.find("/"), rest.find("?")) if index >= 0), default=-1)
    if at < 0:
        return "/"
    return rest[at:] if rest[at] == "/" else "/" + rest[at:]


def _split(authority: str) -> tuple[str, int | None]:
    host, colon, port = authority.rpartition(":")
    if colon and port.isdigit():
        return host.strip("[]"), int(port)
    return authority.strip("[]"), None


def _authority(run: Run, text: str) -> tuple[str, int | None]:
    """The name and port that an authority means. Remembered, but for synthetic addresses: which name one stands for may become known later."""
    known = run.authorities.get(text)
    if known is not None:
        return known
    host, port = _split(text)
    meant = (_named(run, host), port)
    if not may_change(text) and len(run.authorities) < AUTHORITIES_MAX:
        run.authorities[text] = meant
    return meant


def may_change(authority: str) -> bool:
    """Whether an authority as written may come to mean another name: a synthetic address does once its name is asked for."""
    return _SYNTHETIC.search(authority) is not None


def _named(run: Run, host: str) -> str:
    """A host as the run may write it: a name, a synthetic address that stands for one, or an address as such. A number is no name."""
    plain = _plain(host)
    if (name := run.names.name_of(plain)) is not None:
        return name
    try:
        return names.normalise(plain)
    except names.InvalidName as error:
        try:
            return str(ip_address(plain))
        except ValueError:
            raise ProtocolViolation("invalid-host", f"the host is neither a name nor an address: {error}") from None


def _plain(address: str) -> str:
    """An IPv4 address that came over a dual-stack socket as itself."""
    if not address.startswith("::ffff:"):
        return address.partition("%")[0]
    return address[7:] if "." in address else address
