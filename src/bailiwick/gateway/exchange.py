"""One request of an agent and its answer, as bytes: the body held back until it may go, sent on as it comes, the answer streamed back.

It decides nothing: `server.walk` does, and calls this for what it decided. Back-pressure goes both ways: a slow upstream stops the reading from the
agent, a slow agent the reading from the upstream, and memory stays flat whatever the size.
"""

import hashlib
from typing import Any, Literal, TypeVar

from bailiwick.critic.action import Action
from bailiwick.gateway.agentside import AgentGone, AgentSide
from bailiwick.gateway.answers import REASONS, KnownAnswer
from bailiwick.gateway.events import Outcome
from bailiwick.gateway.git import Repository, announced
from bailiwick.gateway.layers.heads import RequestHead, ResponseHead
from bailiwick.gateway.layers.http1 import end_to_end, response_bytes
from bailiwick.gateway.layers.scrub import Scrubber
from bailiwick.gateway.models import ModelCall, ModelUsage
from bailiwick.gateway.refusal import Refusal, for_model, render
from bailiwick.gateway.runs import Refused, Run
from bailiwick.gateway.target import Target
from bailiwick.gateway.upstream import UpstreamConnection, UpstreamFailed
from bailiwick.gateway.usage import UsageTap
from bailiwick.gateway.waiting import Pending
from bailiwick.kernel import limits

T = TypeVar("T")

QUEUED_BYTES_MAX = 64 * limits.KIB  # of a body that waits for its decision
DRAINED_BYTES_MAX = 1 * limits.MIB  # of a refused body; a longer one ends the connection
LINGER_SECONDS = 5.0  # for the rest of a refused body: closing on it would take the answer with it
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class Exchange:
    """Lives from a request's head to the end of both messages. It is the `upstream.Receiver` of its answer."""

    # What most exchanges never change stands here once.
    hold: str | None = None  # the sign-off that was used up for it
    scrubber: Scrubber | None = None
    call: ModelCall | None = None
    tap: UsageTap | None = None
    repository: Repository | None = None  # that its answer may announce
    body: bytes | None = None  # once it was read whole
    raw: bytes | None = None  # its head, where it may be remembered by it
    heads: dict[bytes, Any] | None = None  # where it would be
    request_done = answer_done = sent = False  # sent: a byte of the request may have reached the upstream
    gone: AgentGone | None = None
    _mode: Literal["wait", "collect", "forward", "drop"] = "wait"
    _size = _buffered = 0
    _collected: Pending[bytes] | None = None
    _parked: Pending[Any] | None = None
    _answered: Pending[None] | None = None
    _upstream: UpstreamConnection | None = None
    _hash: Any = None
    _answer_chunked = _answer_begun = False

    def __init__(self, connection: AgentSide, run: Run, head: RequestHead, target: Target) -> None:
        self.run = run
        self.head = head
        self.target = target
        self.fields = head.fields  # to forward, but for what is one hop's
        self.id = run.house.ids.action()
        self.outcome = Outcome()
        self.started = run.house.loop.time()
        self.deadline = self.started + limits.IDLE_SECONDS_MAX
        self._connection = connection
        self._parts: list[bytes] = []
        self._continue = head.expects_continue
        self._out: list[bytes] = []  # of the answer, until the end of what came at once
        self._untapped: list[bytes] = []  # of the answer, as it was given
        self._keep_alive = head.keep_alive

    def begin(self, action: Action) -> None:
        """From here on the action has an outcome."""
        self.run.unfinished[self.id] = action

    def end(self) -> None:
        del self.run.unfinished[self.id]
        if self.outcome.result == "unknown":
            self.run.unknown.append(self.id)

    def park(self, pending: Pending[T]) -> Pending[T]:
        """What it waits for; the agent's leaving, or the end of its run, ends that. Awaited at once."""
        self._parked = pending
        if self.gone is not None:
            pending.fail(self.gone)
        return pending

    # -- the request's body

    def body_data(self, data: bytes) -> None:
        self._size += len(data)
        match self._mode:
            case "forward":
                self.deadline = self.run.house.loop.time() + limits.UPSTREAM_ANSWER_SECONDS_MAX
                if self._upstream is not None:
                    self._upstream.send(self._framed(data))
            case "drop":
                if self._size > DRAINED_BYTES_MAX:
                    self._connection.close()
            case "collect" if (why := self._too_much(self._size, len(data))) is not None:
                self._parts.clear()
                self._mode = "drop"
                assert self._collected is not None
                self._collected.fail(Refused("too-large", 413, why))
            case _:
                self.deadline = self.run.house.loop.time() + limits.IDLE_SECONDS_MAX
                self._parts.append(data)
                self._buffered += len(data)
                self.run.hold_back(len(data))
                if self._mode == "wait" and self._size > QUEUED_BYTES_MAX:
                    self._connection.pause_reading()

    def _too_much(self, size: int, more: int) -> str | None:
        if size > limits.BODY_BUFFER_BYTES_MAX:
            return f"a body that is read before its decision must be at most {limits.BODY_BUFFER_BYTES_MAX} bytes"
        return self.run.full_with(more)

    def let_go(self) -> None:
        """Its walk is over, and with it what it held back."""
        self.run.hold_back(-self._buffered)

    def body_end(self) -> None:
        self.request_done = True
        if self._mode == "forward":
            if self._upstream is not None:
                self._upstream.send(self._framed_end())
        elif self._mode == "collect" and self._collected is not None:
            self._collected.settle(b"".join(self._parts))
        self._over()

    async def read_body(self) -> bytes:
        """The body whole, before anything of it goes anywhere. Raises Refused for one that is too large, AgentGone."""
        if self.body is None:
            if (why := self._too_much(self.head.length or 0, 0)) is not None:
                raise Refused("too-large", 413, why)
            self._mode = "collect"
            if not self.request_done:
                self._collected = Pending()
                self._invite()
                self.body = await self._collected
            else:
                self.body = b"".join(self._parts)
            self._parts = []
        return self.body

    def _invite(self) -> None:
        if self._continue and not self._size:
            self._connection.write(_CONTINUE)
        self._continue = False
        self._connection.resume_reading()

    def _framed(self, data: bytes) -> bytes:
        """A piece of body as it is sent, counted and hashed."""
        if self._hash is None:
            self._hash = hashlib.sha256()
        self._hash.update(data)
        self.outcome.request_bytes += len(data)
        return b"%x\r\n%b\r\n" % (len(data), data) if self.body is None and self.head.framing == "chunked" else data

    def _framed_end(self) -> bytes:
        if self._hash is not None:
            self.outcome.request_sha256 = self._hash.hexdigest()
        return _LAST_CHUNK if self.body is None and self.head.framing == "chunked" else b""

    # -- the other side

    async def ask(self, upstream: UpstreamConnection, head: bytes) -> None:
        """Sends the request and returns when the answer has been streamed back whole. Raises UpstreamFailed, AgentGone."""
        if self.gone is not None:
            raise self.gone
        self._upstream = upstream
        self._answered = answered = Pending[None]()
        self.outcome.address = upstream.address
        self.sent = True
        self.deadline = self.run.house.loop.time() + limits.UPSTREAM_ANSWER_SECONDS_MAX
        upstream.ask(self.head.method, self)
        if self._connection.full:
            upstream.pause_reading()
        self._mode = "forward"
        parts, self._parts = [self.body] if self.body else self._parts, []
        pieces = [head, *(self._framed(part) for part in parts)]
        if self.request_done:
            pieces.append(self._framed_end())
        self.outcome.request_bytes += len(head)
        upstream.send(b"".join(pieces))
        if not self.request_done:
            self._invite()
        await answered

    def takes_whole(self, answer: KnownAnswer, out: bytes) -> bool:
        """Whether an answer that is here whole, with a head seen before, may go on as `out`: nothing reads it, nothing is in it to be taken out."""
        if self.call is not None or self.repository is not None or not self._keep_alive or not self.request_done or not self._connection.speaks_chunked:
            return False
        return self.scrubber is None or self.scrubber.passes(answer, out)

    def answer_whole(self, answer: KnownAnswer, out: bytes) -> None:
        """In the place of `answer_head` to `answer_end`."""
        self.outcome.status = answer.status
        self.outcome.answer_bytes = answer.length
        self._connection.write(out)
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            self.run.upstreams.keep(self.target.destination, upstream)
        self.answer_done = True
        self._concluded(None)
        self._connection.exchange_over(True)

    def answer_head(self, head: ResponseHead) -> None:
        self.deadline = self.run.house.loop.time() + limits.UPSTREAM_ANSWER_SECONDS_MAX
        self.outcome.status = head.status
        if self.repository is not None and announced(head.status, head.first(b"content-type")):
            self.run.repositories.add(self.repository)
        fields, reason = end_to_end(head.fields), head.reason
        scrubber = self.scrubber
        if scrubber is not None:
            if head.framing != "none" and (head.first(b"content-encoding") or b"identity").lower() != b"identity":
                self._break_off(UpstreamFailed("answer-encoded", "the answer is compressed although it must not be, so what was injected cannot be taken out"))
                return
            fields, reason = scrubber.fields(fields), REASONS.get(head.status, b"")
        if self.tap is None and self.call is not None and self.target.route is not None and head.status < 400:
            stream = (head.first(b"content-type") or b"").lower().startswith(b"text/event-stream")
            self.tap = UsageTap(self.target.endpoint or "", stream=stream, content_encoding=(head.first(b"content-encoding") or b"").decode("latin-1") or None)
        if head.framing == "none":
            if head.length is not None:
                fields.append((b"content-length", b"%d" % head.length))
        elif head.framing == "length" and scrubber is None:
            fields.append((b"content-length", b"%d" % (head.length or 0)))
        elif self._connection.speaks_chunked:
            self._answer_chunked = True
            fields.append((b"transfer-encoding", b"chunked"))
        else:
            self._keep_alive = False
        if not self.request_done:
            self._keep_alive = False  # it answered before it heard everything: the rest is nobody's
        if not self._keep_alive:
            fields.append((b"connection", b"close"))
        elif not self._connection.speaks_chunked:
            fields.append((b"connection", b"keep-alive"))
        self._out.append(response_bytes(head.status, reason, fields))

    def answer_data(self, data: bytes) -> None:
        self.deadline = self.run.house.loop.time() + limits.UPSTREAM_ANSWER_SECONDS_MAX
        self.outcome.answer_bytes += len(data)
        if self.scrubber is not None:
            data = self.scrubber.feed(data)
        if data:
            self._give(data)

    def _give(self, data: bytes) -> None:
        """What the agent may have, and so the tap: what was injected is in neither."""
        if self.tap is not None:
            self._untapped.append(data)
        self._out.append(b"%x\r\n%b\r\n" % (len(data), data) if self._answer_chunked else data)

    def answer_flush(self) -> None:
        if self._out:
            self._answer_begun = True
            out, self._out = self._out, []
            self._connection.write(out[0] if len(out) == 1 else b"".join(out))
        if self._untapped:
            self._feed_tap()

    def _feed_tap(self) -> None:
        untapped, self._untapped = self._untapped, []
        assert self.tap is not None
        for data in untapped:
            self.tap.feed(data)

    def usage(self) -> ModelUsage | None:
        """What its answer says that a model call used, once it has ended, however it ended; None without an answer that could say it."""
        if self.tap is None:
            return None
        self._feed_tap()
        return self.tap.finish()

    def answer_end(self) -> None:
        if self.scrubber is not None:
            if rest := self.scrubber.finish():
                self._give(rest)
            self.outcome.scrubbed = self.scrubber.found
        if self._answer_chunked:
            self._out.append(_LAST_CHUNK)
        self.answer_flush()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if self.request_done:
                self.run.upstreams.keep(self.target.destination, upstream)
            else:
                upstream.close()
                self._mode = "drop"
                self.deadline = self.run.house.loop.time() + LINGER_SECONDS
        self.answer_done = True
        self._concluded(None)
        self._over()

    def answer_failed(self, failure: UpstreamFailed) -> None:
        self._upstream = None
        self._concluded(failure)

    def _concluded(self, failure: UpstreamFailed | None) -> None:
        """The answer is here, or will not be: whoever walks this exchange goes on."""
        if self._answered is not None:
            self._answered.settle(None) if failure is None else self._answered.fail(failure)

    def upstream_full(self) -> None:
        self._connection.pause_reading()

    def upstream_drained(self) -> None:
        self._connection.resume_reading()

    def _break_off(self, failure: UpstreamFailed) -> None:
        if self._upstream is not None:
            self._upstream.abandon()
        failure.answered = True
        self.answer_failed(failure)

    # -- the agent's side

    @property
    def answer_begun(self) -> bool:
        """Whether a byte of an answer has gone to the agent."""
        return self.answer_done or self._answer_begun

    @property
    def under_way(self) -> bool:
        """Whether it has an upstream that is sent something, or sends."""
        return self._upstream is not None

    def agent_full(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def agent_drained(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def agent_gone(self, code: str) -> None:
        """Whatever this exchange waits for, it waits no longer."""
        if self.gone is not None:
            return
        self.gone = AgentGone(code)
        if self._upstream is not None:
            self._upstream.abandon()
            self._upstream = None
        for pending in (self._collected, self._parked, self._answered):
            if pending is not None:
                pending.fail(self.gone)

    def refuse(self, refused: Refused) -> None:
        """Answers with why. Once a byte of another answer has gone, the connection is cut instead: a half answer must not look whole."""
        if self.gone is not None or self.answer_done:
            return
        if self.answer_begun:
            self._connection.cut(refused.kind)
            return
        words: Refusal = {
            "kind": refused.kind,
            "status": refused.status,
            "reason": refused.reason,
            "rules": refused.rules,
            "retry": refused.retry,
            "run": self.run.id,
            "action": self.id,
            "hold": refused.hold,
        }
        route = self.target.route
        status, fields, body = for_model(route.dialect, **words) if route is not None and self.target.endpoint else render(**words)
        self._out.clear()
        self._mode = "drop"
        self._parts.clear()
        if not self.request_done and (self._continue or (self.head.length or 0) > DRAINED_BYTES_MAX):
            self._keep_alive = False
        self.deadline = self.run.house.loop.time() + LINGER_SECONDS
        if not self._keep_alive:
            fields += ((b"connection", b"close"),)
        head = response_bytes(status, REASONS.get(status, b""), fields)
        self._connection.write(head if self.head.method == "HEAD" else head + body)
        self.answer_done = True
        self._connection.resume_reading()
        self._over()

    def expire(self, now: float) -> None:
        """Called now and then: ends what has been silent for too long."""
        if now < self.deadline:
            return
        if self._upstream is not None:
            self._break_off(UpstreamFailed("answer-timeout", f"no answer within {limits.UPSTREAM_ANSWER_SECONDS_MAX:g} s"))
        elif self._mode in ("collect", "drop") and not self.request_done:
            self._connection.cut("idle")

    def _over(self) -> None:
        if self.answer_done and (self.request_done or self._continue):  # who waits to be told to continue has sent nothing to wait for
            self._connection.exchange_over(self._keep_alive and self.request_done)
