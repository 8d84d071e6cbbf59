"""The walk of a request that was walked before (`repeats`): the same steps in the same order, those that are remembered left out.

What cannot be done at once, without waiting, is not done here: the request then goes the long way, as if it had not been known. Once it is sent, all that
is not the plain course (a connection that closes upon it, an agent that leaves, an answer to be scrubbed) goes the way of every exchange.
"""

from functools import partial

from bailiwick.gateway import server
from bailiwick.gateway.agentside import AgentSide
from bailiwick.gateway.answers import KnownAnswer
from bailiwick.gateway.events import Outcome
from bailiwick.gateway.exchange import Exchange
from bailiwick.gateway.layers.heads import ResponseHead
from bailiwick.gateway.repeats import Repeat
from bailiwick.gateway.runs import Run
from bailiwick.gateway.upstream import UpstreamConnection, UpstreamFailed
from bailiwick.gateway.waiting import drive
from bailiwick.kernel import limits
from bailiwick.kernel.errors import BailiwickError


def begun(connection: AgentSide, run: Run, repeat: Repeat) -> "RepeatedExchange | None":
    """Its intent is recorded and a connection is at hand: `forward` it. None when it has to go the long way, and then nothing has happened."""
    house, target, lent = run.house, repeat.target, repeat.lent
    now = house.loop.time()
    if run.closed is not None or run.critic is not repeat.critic or not house.governor.fresh:
        return None
    if lent is not None and run.leases.get(target.name, repeat.verb, now) is not lent:
        return None
    upstream = run.upstreams.kept(target.destination)
    if upstream is None:
        return None
    exchange = RepeatedExchange(connection, run, repeat, upstream, now)
    try:
        house.recorder.append_encoded(repeat.intent(house.ids.event(), exchange.id))
    except BailiwickError:  # the long way says so
        run.upstreams.keep(target.destination, upstream)
        return None
    run.unfinished[exchange.id] = repeat.action
    return exchange


class RepeatedExchange(Exchange):
    request_done = True
    sent = True
    _mode = "forward"
    _continue = False
    _keep_alive = True
    _alone = True  # no coroutine walks it

    def __init__(self, connection: AgentSide, run: Run, repeat: Repeat, upstream: UpstreamConnection, now: float) -> None:  # not the base's: half its work
        self.run = run
        self.head = repeat.head
        self.target = repeat.target
        self.id = run.house.ids.action()
        self.started = now
        self.deadline = now + limits.UPSTREAM_ANSWER_SECONDS_MAX
        self.outcome = outcome = Outcome()
        outcome.address, outcome.credentials, outcome.request_bytes = upstream.address, repeat.credentials, repeat.used.egress_bytes
        self._connection = connection
        self._upstream = upstream
        self._parts = []
        self._out = []
        self._untapped = []
        self._repeat = repeat

    def forward(self) -> None:
        upstream = self._upstream
        assert upstream is not None
        upstream.ask(self.head.method, self)
        if self._connection.full:
            upstream.pause_reading()
        upstream.send(self._repeat.outgoing)

    def takes_whole(self, answer: KnownAnswer, out: bytes) -> bool:
        scrubber = self._repeat.scrubber
        return self._connection.speaks_chunked and (scrubber is None or scrubber.passes(answer, out))

    def answer_head(self, head: ResponseHead) -> None:
        lent = self._repeat.lent
        if lent is not None and lent.uses:
            self.scrubber = lent.scrubber()
        super().answer_head(head)

    def agent_gone(self, code: str) -> None:
        super().agent_gone(code)
        if self._alone:
            self._alone = False
            self.outcome.error = code
            if self.outcome.status is not None:
                self.outcome.result = "answered"
            server.recorded(self, self._repeat.action, None)

    def _concluded(self, failure: UpstreamFailed | None) -> None:
        if not self._alone:
            super()._concluded(failure)
            return
        self._alone = False
        if failure is not None:
            drive(server.concluded(self, self._repeat.action, None, self._once_more(failure)), partial(server.failed, self))
        elif self.outcome.scrubbed:
            self.outcome.result = "answered"
            server.recorded(self, self._repeat.action, None)
        else:
            self._answered_plainly()

    async def _once_more(self, failure: UpstreamFailed) -> None:
        """It is a read: what a kept connection closed upon, unanswered, is sent once more."""
        if failure.code != "no-answer":
            raise failure
        await server.forwarded_anew(self, self._repeat.outgoing)

    def _answered_plainly(self) -> None:
        """`server.recorded` of an answered read without a body."""
        run, outcome, house = self.run, self.outcome, self.run.house
        duration_ms = int((house.loop.time() - self.started) * 1_000)
        run.count(self._repeat.used)
        del run.unfinished[self.id]
        event = self._repeat.outcome(
            house.ids.event(), self.id, outcome.address or "", status=outcome.status or 0, answer_bytes=outcome.answer_bytes, duration_ms=duration_ms
        )
        try:
            house.recorder.append_encoded(event)
        except BailiwickError:
            return  # as `Run.record`: an unreachable record loses it, and what comes next is refused
