"""Fetching from a git repository over HTTP (gitprotocol-http) posts what the client has, so its POST is a read. Anybody can post to such a path, and any
server can have one: it is a read only where, in this run, the same repository has announced itself before, as it does to every git client.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Final, NamedTuple

from bailiwick.critic.action import Action, HttpResource, Verb

REPOSITORIES_MAX: Final = 1_024  # remembered of a run; the one that was used longest ago has to announce itself again
_ANNOUNCES: Final = ("/info/refs", "service=git-upload-pack")
_ANNOUNCEMENT: Final = b"application/x-git-upload-pack-advertisement"
_FETCH: Final = "/git-upload-pack"


class Repository(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str


def announcing(action: Action) -> Repository | None:
    """The repository that this action asks whether it is one."""
    resource = action.resource
    if isinstance(resource, HttpResource) and resource.method == "GET" and resource.path.endswith(_ANNOUNCES[0]) and resource.query == _ANNOUNCES[1]:
        return _of(resource, _ANNOUNCES[0])
    return None


def announced(status: int, content_type: bytes | None) -> bool:
    """Whether that was the answer of one."""
    return status == 200 and content_type is not None and content_type.lower() == _ANNOUNCEMENT


class Repositories:
    """Of one run: what has announced itself."""

    def __init__(self) -> None:
        self._known: OrderedDict[Repository, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, repository: Repository) -> None:
        self._known[repository] = None
        self._known.move_to_end(repository)
        if len(self._known) > REPOSITORIES_MAX:
            self._known.popitem(last=False)

    def judged(self, action: Action) -> Action:
        """A fetch, which `actions` knows by its path and its content, as the read it is, if its repository is known; else as the write any POST is."""
        resource = action.resource
        if not isinstance(resource, HttpResource) or (resource.method, action.arguments.get("git")) != ("POST", "upload-pack"):
            return action
        repository = _of(resource, _FETCH)
        if repository not in self._known:
            return action
        self._known.move_to_end(repository)
        return replace(action, verb=Verb.READ)


def _of(resource: HttpResource, suffix: str) -> Repository:
    return Repository(resource.scheme, resource.host, resource.port, resource.path.removesuffix(suffix))
