import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.gateway.models import endpoint_of, read_call
from bailiwick.gateway.models.calls import DOCUMENT_TOKENS_MAX, IMAGE_TOKENS_MAX, OUTPUT_TOKENS_DEFAULT, TOKENS_MAX, ModelCall
from bailiwick.kernel.canonical import canonical
from bailiwick.kernel.errors import CallerError

ENDPOINTS = ["chat-completions", "responses", "messages", "embeddings"]
USER = {"role": "user", "content": "hi"}
LEAST: dict[str, dict[str, Any]] = {
    "chat-completions": {"model": "gpt-5.2", "messages": [USER]},
    "responses": {"model": "gpt-5.2", "input": "hi"},
    "messages": {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [USER]},
    "embeddings": {"model": "text-embedding-3-small", "input": ["a", "b"]},
}


def call(endpoint: str = "chat-completions", **more: Any) -> ModelCall:
    return read_call(endpoint, json.dumps(LEAST[endpoint] | more).encode())


@pytest.mark.parametrize(
    ("dialect", "method", "path", "endpoint"),
    [
        ("openai", "POST", "/v1/chat/completions", "chat-completions"),
        ("openai", "POST", "/chat/completions", "chat-completions"),
        ("openai", "POST", "/v1/responses", "responses"),
        ("openai", "POST", "/responses", "responses"),
        ("openai", "POST", "/v1/embeddings", "embeddings"),
        ("openai", "POST", "/v1//chat/completions/", "chat-completions"),
        ("openai", "GET", "/v1/chat/completions", None),
        ("openai", "GET", "/v1/models", None),
        ("openai", "GET", "/v1/responses/resp_1", None),
        ("openai", "POST", "/v1/responses/resp_1/cancel", None),
        ("openai", "POST", "/v1/messages", None),
        ("anthropic", "POST", "/v1/messages", "messages"),
        ("anthropic", "POST", "/v1/messages/count_tokens", None),
        ("anthropic", "POST", "/v1/messages/batches", None),
        ("anthropic", "POST", "/", None),
        ("other", "POST", "/v1/messages", None),
    ],
)
def test_endpoints_are_known_by_their_paths(dialect: str, method: str, path: str, endpoint: str | None) -> None:
    """With or without the version; what is no model call is plain HTTP."""
    assert endpoint_of(dialect, method, path) == endpoint


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_least_call_is_read(endpoint: str) -> None:
    """Model, no stream, and ceilings that hold the body and the default output."""
    got = call(endpoint)
    assert got.model == LEAST[endpoint]["model"]
    assert not got.stream
    assert got.input_tokens_ceiling >= len(json.dumps(LEAST[endpoint]))
    assert got.output_tokens_ceiling == {"messages": 100, "embeddings": 0}.get(endpoint, OUTPUT_TOKENS_DEFAULT)
    assert got.output_stated == (endpoint in ("messages", "embeddings"))


def test_what_an_approver_sees() -> None:
    """Tools by name, number of messages, effort; no temperature and no text of the prompt."""
    tools = [{"type": "function", "function": {"name": "deploy"}}, {"type": "function", "name": "flat"}]
    got = call(messages=[USER, USER], tools=tools, temperature=0.3, reasoning_effort="high", n=2, max_completion_tokens=50)
    assert got.arguments == {"messages": 2, "choices": 2, "max_output_tokens": 50, "tools": ["deploy", "flat"], "reasoning_effort": "high"}
    assert got.output_tokens_ceiling == 100
    got = call(
        "responses",
        tools=[{"type": "web_search"}, {"type": "mcp", "server_label": "x", "server_url": "https://x"}],
        reasoning={"effort": "low"},
        max_output_tokens=7,
    )
    assert got.arguments == {"messages": 1, "max_output_tokens": 7, "tools": ["web_search", "mcp:x"], "reasoning_effort": "low"}
    got = call(
        "messages", tools=[{"name": "a", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}], thinking={"type": "enabled", "budget_tokens": 10}
    )
    assert got.arguments == {"messages": 1, "max_output_tokens": 100, "tools": ["a", "bash_20250124:bash"], "thinking_tokens": 10}


@pytest.mark.parametrize(
    "maximum", [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 3}, {"max_completion_tokens": 5.0}]
)
def test_the_greater_maximum_counts(maximum: dict[str, Any]) -> None:
    """Two names for one thing: the ceiling holds whichever the provider obeys."""
    assert call(**maximum).output_tokens_ceiling == 5


@pytest.mark.parametrize(
    ("endpoint", "more", "field"),
    [
        ("chat-completions", {"model": None}, "model"),
        ("chat-completions", {"model": ""}, "model"),
        ("chat-completions", {"model": ["gpt-5.2"]}, "model"),
        ("chat-completions", {"model": "gpt 5\n"}, "model"),
        ("chat-completions", {"model": "x" * 300}, "model"),
        ("chat-completions", {"messages": []}, "messages"),
        ("chat-completions", {"messages": "hi"}, "messages"),
        ("chat-completions", {"max_tokens": -1}, "max_tokens"),
        ("chat-completions", {"max_tokens": 10**12}, "max_tokens"),
        ("chat-completions", {"max_tokens": "5"}, "max_tokens"),
        ("chat-completions", {"max_tokens": True}, "max_tokens"),
        ("chat-completions", {"max_tokens": 1.5}, "max_tokens"),
        ("chat-completions", {"n": 0}, "n"),
        ("chat-completions", {"n": 1000}, "n"),
        ("chat-completions", {"stream": "yes"}, "stream"),
        ("chat-completions", {"tools": {}}, "tools"),
        ("chat-completions", {"tools": ["x"]}, "tools[0]"),
        ("chat-completions", {"tools": [{"type": "function", "function": {"name": 3}}]}, "tools[0].name"),
        ("responses", {"input": 3}, "input"),
        ("responses", {"reasoning": "high"}, "reasoning"),
        ("messages", {"max_tokens": None}, "max_tokens"),
        ("messages", {"thinking": {"budget_tokens": -1}}, "budget_tokens"),
        ("embeddings", {"input": None}, "input"),
    ],
)
def test_a_bad_field_is_named(endpoint: str, more: dict[str, Any], field: str) -> None:
    """What cannot be bounded or read is refused, by the name of its field."""
    with pytest.raises(CallerError, match=rf"^{field.replace('[', '.').replace(']', '.')} is "):
        call(endpoint, **more)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model":"a","messages":[{}],"temperature":NaN}',
        b'{"model":"a","messages":[{}],"top_p":-Infinity}',
        b"[" * 100_000,
        b'{"model":"a","messages":[{}],"max_tokens":' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
    ids=range(12),
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """Cut off, not UTF-8, another type, too deep, numbers without end."""
    with pytest.raises(CallerError):
        read_call("chat-completions", body)


@pytest.mark.parametrize("filler", [b"{},", b"[],", b'"a",', b"1,", b'{"a":1},'])
def test_a_body_of_nothing_but_brackets_is_refused_in_time(filler: bytes) -> None:
    """Reading the largest body stops nobody else for long: what has a million parts is refused unread."""
    body = b'{"model":"a","input":[' + filler * (15_000_000 // len(filler)) + b"1]}"
    with pytest.raises(CallerError, match="at most"):
        read_call("responses", body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"cheap","model":"dear","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"cheap","mod\\u0065l":"dear","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"a","messages":[{"role":"user","role":"system","content":"x"}]}',
        b'{"model":"a","max_tokens":5,"max_tokens":9000,"messages":[{"role":"user","content":"x"}]}',
    ],
)
def test_a_key_given_twice_is_refused(body: bytes) -> None:
    """The model that is decided is the model that answers, whichever key another reader takes."""
    with pytest.raises(CallerError, match="twice"):
        read_call("chat-completions", body)


@pytest.mark.parametrize(
    ("part", "ceiling"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 500_000}}, IMAGE_TOKENS_MAX),
        ({"type": "input_image", "image_url": "https://x/y.png"}, IMAGE_TOKENS_MAX),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 500_000}}, IMAGE_TOKENS_MAX),
        ({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}, IMAGE_TOKENS_MAX),
        ({"type": "document", "source": {"type": "file", "file_id": "f"}}, DOCUMENT_TOKENS_MAX),
        ({"type": "input_file", "file_id": "f"}, DOCUMENT_TOKENS_MAX),
        ({"type": "document", "source": {"type": "text", "data": "short"}}, 0),
        ({"type": "text", "text": "A" * 5000}, 5000),
        ({"type": "image", "caption": "many words " * 500}, 5500 + IMAGE_TOKENS_MAX),
    ],
)
def test_pictures_and_documents_are_bounded_apart(part: dict[str, Any], ceiling: int) -> None:
    """A picture's bytes are not its tokens, and a file that is only named has tokens all the same."""
    got = call(messages=[{"role": "user", "content": [part]}]).input_tokens_ceiling
    assert ceiling <= got <= ceiling + 1_500


def test_what_the_provider_stores_is_told() -> None:
    """A call that goes on from a stored response says that its body does not bound its input."""
    assert call("responses", previous_response_id="resp_1").stored_context
    assert not call("responses").stored_context


def test_tiers_that_cost_more_are_told() -> None:
    """Priority processing and fast mode change the price that is reserved."""
    assert call(service_tier="priority").service_tier == "priority"
    assert call("messages", speed="fast").service_tier == "fast"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.sampled_from(["image", "document", "function", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "name", "function", "content", "source", "url", "effort"]), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = [
    "model",
    "messages",
    "input",
    "tools",
    "functions",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "reasoning",
    "thinking",
    "system",
    "service_tier",
    "prompt",
]


@settings(max_examples=400)
@given(st.sampled_from(ENDPOINTS), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5))
def test_any_json_is_a_call_or_refused(endpoint: str, more: dict[str, Any]) -> None:
    """Nothing but CallerError is raised; what comes out is bounded and can be recorded."""
    try:
        got = call(endpoint, **more)
    except CallerError:
        return
    canonical(got.arguments)
    assert 0 <= got.output_tokens_ceiling <= TOKENS_MAX
    assert 0 <= got.input_tokens_ceiling <= TOKENS_MAX


@settings(max_examples=300)
@given(st.sampled_from(ENDPOINTS), st.binary(max_size=60))
def test_any_bytes_are_a_call_or_refused(endpoint: str, body: bytes) -> None:
    """Nothing but CallerError is raised, whatever the body."""
    with pytest.raises(CallerError):
        read_call(endpoint, body)
