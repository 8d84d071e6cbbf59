import gzip
import hashlib
import json
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.gateway.models.answers import ARGUMENTS_KEPT_MAX, ARGUMENTS_SHOWN_MAX, TOOL_CALLS_MAX
from bailiwick.gateway.models.calls import ModelCall
from bailiwick.gateway.usage import ModelUsage, UsageTap, chargeable
from bailiwick.kernel.canonical import canonical


def events(*values: Any, named: bool = False, end: bytes = b"") -> bytes:
    lines = [(b"event: %s\n" % value["type"].encode() if named else b"") + b"data: " + json.dumps(value).encode() + b"\n\n" for value in values]
    return b"".join(lines) + end


def chunk(delta: dict[str, Any] | None = None, stop: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": stop}]
    return {"id": "c", "object": "chat.completion.chunk", "model": "gpt-5.2-2025-12-11", "choices": choices, "usage": None} | more


CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 12},
}
CHAT = events(
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Hello"}),
    chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "deploy", "arguments": ""}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"b": 1, '}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"a": "x"}'}}]}),
    chunk({"tool_calls": [{"index": 1, "id": "call_2", "function": {"name": "stop", "arguments": "{}"}}]}),
    chunk({}, "tool_calls"),
    chunk(usage=CHAT_USAGE),
    end=b"data: [DONE]\n\n",
)
ANTHROPIC = events(
    {
        "type": "message_start",
        "message": {
            "model": "claude-opus-5-5",
            "usage": {"input_tokens": 10, "cache_read_input_tokens": 50, "cache_creation_input_tokens": 40, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "toolu_1", "name": "deploy", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a": "x",'}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ' "b": 1}'}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 20}},
    {"type": "message_stop"},
    named=True,
)
RESPONSE = {
    "id": "resp_1",
    "model": "gpt-5.2",
    "status": "completed",
    "service_tier": "default",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "deploy", "arguments": '{"a":"x","b":1}'},
        {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
    ],
    "usage": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 12},
        "total_tokens": 120,
    },
}
RESPONSES = events(
    {"type": "response.created", "response": {"model": "gpt-5.2", "status": "in_progress", "output": []}},
    {"type": "response.output_text.delta", "delta": "Hello", "output_index": 2},
    {"type": "response.function_call_arguments.delta", "delta": '{"a":', "output_index": 1},
    {"type": "response.output_item.done", "output_index": 1, "item": RESPONSE["output"][1]},  # type: ignore[index]
    {"type": "response.completed", "response": RESPONSE},
    named=True,
)
STREAMS = {"chat-completions": CHAT, "messages": ANTHROPIC, "responses": RESPONSES}
# The same arguments in another order and spacing are the same call.
DIGEST = hashlib.sha256(canonical({"a": "x", "b": 1})).hexdigest()


def read(endpoint: str, *chunks: bytes, stream: bool = True, encoding: str | None = None) -> ModelUsage:
    tap = UsageTap(endpoint, stream=stream, content_encoding=encoding)
    for part in chunks:
        tap.feed(part)
    return tap.finish()


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_tells_what_was_used(endpoint: str) -> None:
    """Tokens of each kind, stop reason, tool calls with a digest that does not depend on spacing; complete."""
    got = read(endpoint, STREAMS[endpoint])
    assert (got.complete, got.problem, got.estimated) == (True, None, False)
    assert (got.input_tokens, got.output_tokens) == (100, 20)
    assert got.cached_input_tokens == (50 if endpoint == "messages" else 64)
    assert got.stop_reason == {"chat-completions": "tool_calls", "messages": "tool_use", "responses": "completed"}[endpoint]
    call = got.tool_calls[0]
    assert (call.name, call.arguments_sha256) == ("deploy", DIGEST)
    assert call.id == ("toolu_1" if endpoint == "messages" else "call_1")
    assert json.loads(call.arguments) == {"a": "x", "b": 1}


@pytest.mark.parametrize("endpoint", STREAMS)
def test_every_byte_may_come_alone(endpoint: str) -> None:
    """Chunks do not matter."""
    stream = STREAMS[endpoint]
    assert read(endpoint, *(bytes((byte,)) for byte in stream)) == read(endpoint, stream)


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_that_dies_is_not_complete(endpoint: str) -> None:
    """Wherever it is cut before its last events, `complete` is false, there is a reason, and what was seen is counted."""
    stream = STREAMS[endpoint]
    last = stream.rindex(b"data: ", 0, stream.rindex(b"data: ")) if endpoint == "chat-completions" else len(stream) - 1
    end = stream.index(b'"finish_reason": "tool_calls"') if endpoint == "chat-completions" else last
    for cut in range(0, end, 7):
        got = read(endpoint, stream[:cut])
        assert not got.complete
        assert got.problem
        assert got.output_tokens is not None
    got = read(endpoint, stream[: end - 1])
    assert got.output_tokens >= 3  # type: ignore[operator]


def test_chat_without_usage_is_estimated() -> None:
    """A client that did not ask for usage gets none, and so do we: output is estimated from what was written, never too low for English."""
    text = "The deployment of the nightly build to staging has finished without errors. " * 10
    got = read("chat-completions", events(chunk({"content": text}), chunk({}, "stop"), end=b"data: [DONE]\n\n"))
    assert got.complete
    assert got.estimated
    assert got.input_tokens is None
    assert got.output_tokens is not None
    assert len(text) / 4 <= got.output_tokens <= len(text) / 2


def test_a_server_that_leaves_done_out_is_complete() -> None:
    """Compatible servers exist that end with the finish reason."""
    assert read("chat-completions", events(chunk({"content": "a"}), chunk({}, "stop"))).complete


def test_bodies_tell_what_was_used() -> None:
    """An answer that is no stream says the same."""
    arguments = {"name": "deploy", "arguments": '{"a": "x", "b": 1}'}
    message = {"content": "hi", "tool_calls": [{"id": "call_1", "type": "function", "function": arguments}]}
    chat = {"model": "m", "choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}], "usage": CHAT_USAGE}
    block = {"type": "tool_use", "id": "call_1", "name": "deploy", "input": {"b": 1, "a": "x"}}
    usage = {"input_tokens": 100, "output_tokens": 20, "service_tier": "standard"}
    anthropic = {"type": "message", "model": "m", "content": [{"type": "text", "text": "hi"}, block], "stop_reason": "tool_use", "usage": usage}
    for endpoint, body in (("chat-completions", chat), ("messages", anthropic), ("responses", RESPONSE)):
        got = read(endpoint, json.dumps(body).encode(), stream=False)
        assert (got.input_tokens, got.output_tokens, got.complete, got.problem) == (100, 20, True, None)
        assert [(call.name, call.id, call.arguments_sha256) for call in got.tool_calls] == [("deploy", "call_1", DIGEST)]


def test_embeddings_have_only_input() -> None:
    """Vectors are passed over."""
    body = {"object": "list", "model": "e", "data": [{"embedding": [0.5] * 1000}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    got = read("embeddings", json.dumps(body).encode(), stream=False)
    assert (got.input_tokens, got.output_tokens, got.complete) == (8, 0, True)


def test_cache_writes_are_told_apart() -> None:
    """Anthropic prices what is written to the cache by how long it stays."""
    usage = {
        "input_tokens": 1,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_1h_input_tokens": 20, "ephemeral_5m_input_tokens": 10},
        "output_tokens": 1,
    }
    got = read("messages", json.dumps({"type": "message", "content": [], "usage": usage}).encode(), stream=False)
    assert (got.input_tokens, got.cache_write_tokens, got.cache_write_hour_tokens) == (31, 30, 20)


@pytest.mark.parametrize(
    ("endpoint", "stream"),
    [
        ("chat-completions", events({"error": {"type": "server_error", "message": "overloaded"}})),
        ("messages", events({"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}, named=True)),
        ("responses", events({"type": "error", "code": "server_error", "message": "overloaded"}, named=True)),
        ("responses", events({"type": "response.failed", "response": {"status": "failed", "error": {"code": "x", "message": "overloaded"}}}, named=True)),
    ],
)
def test_an_error_in_the_stream_is_told(endpoint: str, stream: bytes) -> None:
    """A provider that fails after its 200 says so in an event; it is in the record."""
    got = read(endpoint, stream)
    assert not got.complete
    assert "overloaded" in (got.problem or "")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw", "x-gzip"])
def test_compressed_answers_are_read(encoding: str) -> None:
    """We ask for identity; a server that compresses all the same is read, in chunks of any size."""
    raw = zlib.compressobj(wbits=-15)
    packed = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "raw": lambda data: raw.compress(data) + raw.flush()}[encoding](CHAT)
    for size in (7, 100, len(packed)):
        chunks = [packed[at : at + size] for at in range(0, len(packed), size)]
        got = read("chat-completions", *chunks, encoding="deflate" if encoding == "raw" else encoding)
        assert (got.complete, got.output_tokens) == (True, 20)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [("br", CHAT), ("zstd", CHAT), ("gzip, br", CHAT), ("gzip", CHAT), ("gzip", gzip.compress(bytes(64 << 20))), ("gzip", gzip.compress(CHAT)[:40])],
)
def test_what_cannot_be_read_is_told(encoding: str, data: bytes) -> None:
    """An unknown encoding, a broken one, a bomb: not complete, with the reason, and no memory."""
    got = read("chat-completions", data, encoding=encoding)
    assert not got.complete
    assert got.problem


def test_a_bomb_is_named() -> None:
    """An answer that grows beyond all bounds when decompressed is given up at once."""
    assert "decompresses" in (read("chat-completions", gzip.compress(bytes(64 << 20)), encoding="gzip").problem or "")


def test_arguments_are_shown_in_part_and_hashed_whole() -> None:
    """The record is bounded; two calls that differ in their last byte differ in their digest."""
    found = []
    for last in ("a", "b"):
        arguments = json.dumps({"x": "y" * 600_000 + last})
        parts = [
            chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": arguments[at : at + 50_000]}}]})
            for at in range(0, len(arguments), 50_000)
        ]
        got = read("chat-completions", events(*parts, chunk({}, "tool_calls")))
        assert len(got.tool_calls[0].arguments) == ARGUMENTS_SHOWN_MAX
        found.append(got.tool_calls[0].arguments_sha256)
    assert len(set(found)) == 2


def test_arguments_without_end_cost_no_memory() -> None:
    """What is beyond the bound is hashed and not kept."""
    tap = UsageTap("chat-completions", stream=True, content_encoding=None)
    part = events(chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "x" * 100_000}}]}))
    for _ in range(20):
        tap.feed(part)
    assert sum(map(len, tap._reader.calls[0, 0]._parts)) <= ARGUMENTS_KEPT_MAX + 100_000
    assert tap.finish().tool_calls[0].arguments_sha256 == hashlib.sha256(b"x" * 2_000_000).hexdigest()


def test_a_call_that_is_told_twice_counts_once() -> None:
    """The response that ends a stream says every call again, also one whose event had no index."""
    item = RESPONSE["output"][1]  # type: ignore[index]
    stream = events({"type": "response.output_item.done", "item": item}, {"type": "response.completed", "response": RESPONSE})
    assert len(read("responses", stream).tool_calls) == 1


def test_a_call_that_was_broken_off_is_charged_its_ceiling() -> None:
    """What nobody told is not credited back: neither input without usage, nor output whose end was not seen."""
    call = ModelCall(model="m", stream=True, input_tokens_ceiling=500, output_tokens_ceiling=1_000)
    whole, cut = chargeable(call, read("messages", ANTHROPIC)), chargeable(call, read("messages", ANTHROPIC[:-30]))
    assert (whole.input_tokens, whole.output_tokens) == (100, 20)
    assert (cut.input_tokens, cut.output_tokens) == (100, 1_000)
    untold = chargeable(call, read("chat-completions", events(chunk({"content": "abc"}, "stop"), end=b"data: [DONE]\n\n")))
    assert (untold.input_tokens, untold.output_tokens) == (500, 1)
    failed = RESPONSE | {"status": "failed", "error": {"code": "server_error", "message": "x"}}
    told = chargeable(call, read("responses", events({"type": "response.failed", "response": failed}, named=True)))
    assert (told.input_tokens, told.output_tokens) == (100, 20)
    nothing = chargeable(call, read("chat-completions"))
    assert (nothing.input_tokens, nothing.output_tokens) == (500, 1_000)


@pytest.mark.parametrize("number", [-5, True, 1.5, "7", None, 10**12, [], {}])
def test_a_number_that_is_none_is_not_believed(number: Any) -> None:
    """Negative, absurd or of another type: as if nobody had told."""
    got = read("chat-completions", events(chunk({"content": "abc"}, "stop"), chunk(usage={"prompt_tokens": number, "completion_tokens": number})))
    assert (got.input_tokens, got.output_tokens, got.estimated) == (None, 1, True)


def test_tool_calls_have_a_bound() -> None:
    """More calls than the bound are counted as a problem, not kept."""
    parts = [chunk({"tool_calls": [{"index": index, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}) for index in range(TOOL_CALLS_MAX + 5)]
    got = read("chat-completions", events(*parts, chunk({}, "tool_calls")))
    assert len(got.tool_calls) == TOOL_CALLS_MAX
    assert got.problem


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "index",
                    "delta",
                    "choices",
                    "usage",
                    "message",
                    "response",
                    "output",
                    "item",
                    "content",
                    "tool_calls",
                    "function",
                    "arguments",
                    "error",
                    "id",
                    "name",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)
KINDS = [
    "message_start",
    "message_delta",
    "content_block_start",
    "content_block_delta",
    "response.completed",
    "response.output_item.done",
    "response.x.delta",
    "error",
    "message",
]


@settings(max_examples=300)
@given(
    st.sampled_from([*STREAMS, "embeddings"]),
    st.lists(
        st.dictionaries(st.sampled_from(["index", "delta", "choices", "usage", "message", "response", "item", "error", "content_block"]), JSON, max_size=4),
        max_size=4,
    ),
    st.data(),
)
def test_any_events_are_read(endpoint: str, values: list[dict[str, Any]], data: st.DataObject) -> None:
    """Members that are missing or of another type are passed over; what comes out can be recorded."""
    typed = [value | {"type": data.draw(st.sampled_from(KINDS))} for value in values]
    for got in (read(endpoint, events(*typed)), *(read(endpoint, json.dumps(value).encode(), stream=False) for value in typed)):
        canonical([call.shown() for call in got.tool_calls])
        canonical([got.model, got.input_tokens, got.output_tokens, got.stop_reason, got.problem, got.service_tier])


@settings(max_examples=300)
@given(
    st.sampled_from([*STREAMS, "embeddings"]),
    st.booleans(),
    st.sampled_from([None, "gzip", "deflate", "identity"]),
    st.lists(st.binary(max_size=40), max_size=4),
)
def test_any_bytes_are_read(endpoint: str, stream: bool, encoding: str | None, chunks: list[bytes]) -> None:
    """Nothing is raised, and rubbish is not complete."""
    assert not read(endpoint, *chunks, stream=stream, encoding=encoding).complete
