"""The broker's process: leases for the governor, their values for the gateway's workers, signatures for the recorder.

Everything fails closed. Without a recorder no lease is granted and no value leaves; without a source's value no lease is granted. A broker that was
started anew holds no lease until the governor grants it again.
"""

import base64
import functools
import signal
import socket
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import anyio
import anyio._backends._asyncio  # loaded by its name when a loop starts, which is after the uid is dropped
import uvloop  # noqa: F401  likewise

from bailiwick.broker.configuration import TTL_SECONDS_MAX, CredentialConfiguration, canonical_host
from bailiwick.broker.lease import Lease, LeaseBook, LeaseState, Moment, Terms
from bailiwick.broker.memory import lock_memory, may_lock_memory
from bailiwick.broker.messages import BROKER, GrantLease, LeasesRevoked, LeasesUsed, LeaseUse, RevokeLeases, UseLease
from bailiwick.broker.signer import Signer
from bailiwick.broker.sources.declared import from_configuration
from bailiwick.broker.sources.port import CredentialSource
from bailiwick.broker.template import Template
from bailiwick.critic.action import Verb
from bailiwick.kernel.accounts import Accounts, Role
from bailiwick.kernel.channel import Channel, Peer, Received, Reply, serve
from bailiwick.kernel.clock import Clock, timestamp
from bailiwick.kernel.errors import BailiwickError, CallerError, Conflict, Forbidden, NotFound
from bailiwick.kernel.ids import ActionId, LeaseId, RunId, SequenceOfIds
from bailiwick.kernel.layout import Layout
from bailiwick.kernel.limits import STOP_SECONDS_MAX
from bailiwick.record.client import RecordClient
from bailiwick.record.event import Event
from bailiwick.record.signing import SIGNER

SWEEP_SECONDS = 1.0
RECORD_SECONDS_MAX = 8.0  # less than the time a caller waits for its answer
VALUE_KEPT_SECONDS = 5.0  # how long a worker may keep an answer; when a run is closed its worker drops what it kept
_TEXT_MAX = 512
_HOSTS_MAX = 64


class Record(Protocol):
    """What of `record.client.RecordClient` the broker uses."""

    def append(self, event: Event) -> None: ...

    async def append_durably(self, event: Event, *, seconds_max: float) -> int: ...


class Broker:
    """`handle` answers BROKER. Owns the leases; the sources and the record are the caller's to close."""

    def __init__(self, *, accounts: Accounts, clock: Clock, sources: Mapping[str, CredentialSource], record: Record) -> None:
        self._accounts = accounts
        self._clock = clock
        self._sources = sources
        self._record = record
        self._ids = SequenceOfIds()
        self._book = LeaseBook()
        self._unrecorded: dict[LeaseId, Event] = {}  # of leases that are dead, and whose death is not on file yet
        self._refused_at = -1.0
        self._refused_besides = 0

    async def handle(self, channel: Channel, received: Received) -> Reply:
        received.close()
        match received.message:
            case GrantLease() as asked:
                self._only(Role.GOVERNOR, channel.peer)
                await self._grant(asked)
                return Reply()
            case RevokeLeases() as asked:
                self._only(Role.GOVERNOR, channel.peer)
                return Reply(await self._revoke(asked))
            case UseLease() as asked:
                self._only(Role.GATEWAY, channel.peer)
                return Reply(await self._use(asked, channel.peer))
            case other:
                raise CallerError(f"the broker takes no {type(other).__name__}; must be GrantLease, RevokeLeases or UseLease")

    def admits(self, peer: Peer) -> bool:
        return bool(self._accounts.roles(peer.uid) & {Role.GOVERNOR, Role.GATEWAY})

    def refused(self, peer: Peer, reason: str) -> None:
        """Told of strangers and broken protocol. At most one event a second, which counts the others: a stranger does not get to fill the record."""
        now = self._clock.monotonic()
        if now - self._refused_at < SWEEP_SECONDS:
            self._refused_besides += 1
            return
        body = {"at": "broker", "pid": peer.pid, "uid": peer.uid, "reason": reason[:_TEXT_MAX], "besides": self._refused_besides}
        self._refused_at, self._refused_besides = now, 0
        try:
            self._record.append(Event(id=self._ids.event(), kind="peer.refused", time=timestamp(self._clock.now()), body=body))
        except BailiwickError:
            self._refused_besides += 1  # told with the next one, when the recorder takes events again

    async def sweep(self) -> None:
        """Called now and then: expired leases are forgotten, and every death that is not on file is tried again."""
        for lease in self._book.sweep(self._moment()):
            self._note_death(lease, "expired")
        for id, event in list(self._unrecorded.items()):
            await self._record.append_durably(event, seconds_max=RECORD_SECONDS_MAX)
            self._unrecorded.pop(LeaseId(id), None)

    async def _grant(self, asked: GrantLease) -> None:
        terms = self._terms(asked)
        source = self._sources.get(asked.credential)
        if source is None:
            raise NotFound(f"credential {asked.credential!r} is not in the configuration; known: {', '.join(sorted(self._sources)) or 'none'}")
        lease = self._book.announce(LeaseId(asked.lease), terms, self._moment())
        if lease.state is LeaseState.LIVE:
            if terms.expires > lease.terms.expires:
                await self._record_grant(lease, terms)
                self._book.extend(lease, terms.expires, self._moment())
            return
        terms.template.fill(await source.fetch(), credential=terms.credential)  # better no run than one whose first action fails
        await self._record_grant(lease, terms)
        self._book.grant(lease, self._moment())

    async def _record_grant(self, lease: Lease, terms: Terms) -> None:
        body = {"lease": lease.id, "worker": terms.worker, "hosts": sorted(terms.hosts), "verbs": sorted(terms.verbs), "field": terms.template.field}
        event = self._event("lease.granted", lease, body={**body, "expires": timestamp(terms.expires)})
        await self._record.append_durably(event, seconds_max=RECORD_SECONDS_MAX)

    async def _revoke(self, asked: RevokeLeases) -> LeasesRevoked:
        """The leases are dead before anything is awaited; a failure says only that their death is not on file yet, and is to be tried again."""
        run = RunId(_text("run", asked.run))
        for lease in self._book.revoke(run):
            self._note_death(lease, _text("reason", asked.reason))
        dead: list[str] = [lease.id for lease in self._book.of(run)]
        for id in dead:
            if event := self._unrecorded.get(LeaseId(id)):
                await self._record.append_durably(event, seconds_max=RECORD_SECONDS_MAX)
                self._unrecorded.pop(LeaseId(id), None)
        return LeasesRevoked(dead)

    async def _use(self, asked: UseLease, peer: Peer) -> LeasesUsed:
        run, action = RunId(_text("run", asked.run)), ActionId(_text("action", asked.action))
        workers = [worker.name for worker in self._accounts.workers() if self._accounts.may_act_as(peer.uid, worker.name)]
        host, verb = canonical_host(_text("host", asked.host)), _verb(asked.verb)
        leases = self._book.use(run, workers=workers, host=host, verb=verb, now=self._moment())
        secrets = [await self._sources[lease.terms.credential].fetch() for lease in leases]
        moment = self._moment()
        uses = []
        for lease, secret in zip(leases, secrets, strict=True):
            if lease.state is not LeaseState.LIVE or lease.ends <= moment.monotonic:
                raise Conflict(f"lease {lease.id} died while its value was fetched")
            value = lease.terms.template.fill(secret, credential=lease.terms.credential)
            # Unless the record takes it, the value does not leave.
            self._record.append(self._event("lease.used", lease, action=action, verb=verb, body={"lease": lease.id, "host": host, "use": lease.uses}))
            uses.append(
                LeaseUse(
                    lease=lease.id,
                    credential=lease.terms.credential,
                    field=lease.terms.template.field,
                    value=_base64(value.reveal()),
                    secret=_base64(secret.reveal()),
                )
            )
        kept = min([VALUE_KEPT_SECONDS, *(lease.ends - moment.monotonic for lease in leases)])
        return LeasesUsed(uses, kept)

    def _note_death(self, lease: Lease, reason: str) -> None:
        self._unrecorded[lease.id] = self._event("lease.revoked", lease, body={"lease": lease.id, "reason": reason, "uses": lease.uses})

    def _only(self, role: Role, peer: Peer) -> None:
        if role not in self._accounts.roles(peer.uid):
            raise Forbidden(f"uid {peer.uid} is not the {role}'s; only it may ask this of the broker")

    def _terms(self, asked: GrantLease) -> Terms:
        workers = [worker.name for worker in self._accounts.workers()]
        if asked.worker not in workers:
            raise CallerError(f"worker {asked.worker[:_TEXT_MAX]!r} is unknown; must be one of {', '.join(workers)}")
        if not 0 < len(asked.hosts) <= _HOSTS_MAX or not asked.verbs:
            raise CallerError(f"lease for {len(asked.hosts)} hosts and {len(asked.verbs)} verbs; must be 1 to {_HOSTS_MAX} hosts and at least one verb")
        _text("lease", asked.lease)
        return Terms(
            run=RunId(_text("run", asked.run)),
            agent=_text("agent", asked.agent),
            worker=asked.worker,
            credential=asked.credential,
            hosts=frozenset(canonical_host(_text("host", host)) for host in asked.hosts),
            verbs=frozenset(_verb(verb) for verb in asked.verbs),
            template=Template.parse(asked.template),
            expires=self._expiry(asked.expires),
        )

    def _expiry(self, text: str) -> datetime:
        try:
            expires = datetime.fromisoformat(text)
        except ValueError:
            expires = None
        if expires is None or expires.tzinfo is None:
            raise CallerError(f"expiry {text[:_TEXT_MAX]!r} is not a time; must be RFC 3339 with an offset")
        if expires > self._clock.now() + timedelta(seconds=TTL_SECONDS_MAX):
            raise CallerError(f"expiry {text} is more than {TTL_SECONDS_MAX:g} s away; a lease is short")
        return expires

    def _event(self, kind: str, lease: Lease, *, body: dict[str, object], action: ActionId | None = None, verb: Verb | None = None) -> Event:
        terms = lease.terms
        now = timestamp(self._clock.now())
        return Event(
            id=self._ids.event(), kind=kind, time=now, run=terms.run, agent=terms.agent, action=action, verb=verb, credential=terms.credential, body=body
        )

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), self._clock.monotonic())


def open_sources(credentials: Mapping[str, CredentialConfiguration], *, environment_fd: int | None, directory: Path) -> dict[str, CredentialSource]:
    """What needs the starter's rights, in the broker's process before its uid is dropped. Relative paths of `credentials` start at `directory`."""
    may_lock_memory()
    return from_configuration(credentials, directory=directory, environment_descriptor=environment_fd)


def run(
    *,
    listener: socket.socket,
    signer_listener: socket.socket,
    layout: Layout,
    accounts: Accounts,
    clock: Clock,
    sources: Mapping[str, CredentialSource],
    origin: str,
) -> None:
    """Serves until SIGTERM. `origin` is the record's name in checkpoints. Raises BackendError when the checkpoint key cannot be used."""
    lock_memory()
    signer = Signer(layout.broker, origin)
    serving = functools.partial(_serve, listener, signer_listener, signer, layout, accounts, clock, sources)
    anyio.run(serving, backend="asyncio", backend_options={"use_uvloop": True})
    signer.close()


async def _serve(
    listener: socket.socket,
    signer_listener: socket.socket,
    signer: Signer,
    layout: Layout,
    accounts: Accounts,
    clock: Clock,
    sources: Mapping[str, CredentialSource],
) -> None:
    record = RecordClient(layout.socket("recorder"), clock=clock)
    await record.start()
    broker = Broker(accounts=accounts, clock=clock, sources=sources, record=record)

    def is_recorder(peer: Peer) -> bool:
        return Role.RECORDER in accounts.roles(peer.uid)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(functools.partial(serve, listener, BROKER, broker.handle, admit=broker.admits, refused=broker.refused))
            tasks.start_soon(functools.partial(serve, signer_listener, SIGNER, signer.handle, admit=is_recorder, refused=broker.refused))
            tasks.start_soon(_sweep_for_ever, broker)
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    tasks.cancel_scope.cancel()
    finally:
        with anyio.move_on_after(STOP_SECONDS_MAX / 2, shield=True):
            await record.close()


async def _sweep_for_ever(broker: Broker) -> None:
    while True:
        await anyio.sleep(SWEEP_SECONDS)
        try:
            await broker.sweep()
        except BailiwickError:
            continue  # the recorder is down; what is owed to it is kept


def _text(what: str, text: str) -> str:
    if not 0 < len(text) <= _TEXT_MAX or not text.isprintable():
        raise CallerError(f"{what} {text[:_TEXT_MAX]!r} is not taken; must be 1 to {_TEXT_MAX} printable characters")
    return text


def _verb(text: str) -> Verb:
    try:
        return Verb(text)
    except ValueError:
        raise CallerError(f"verb {text[:_TEXT_MAX]!r} is unknown; must be one of {', '.join(Verb)}") from None


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
