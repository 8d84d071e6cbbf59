import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.model_server import FAULTS, ModelServer
from bailiwick.cli.demo.scripts import Answer, ToolCall, call, in_order, say

KEY = "sk-right"
LONG = "A sentence that is long enough to be streamed in several pieces: naïve café, 日本語."
SCRIPTS = {
    "talker": in_order(say(LONG)),
    "worker": in_order(Answer("I look it up.", (ToolCall("look", {"at": "ä"}), ToolCall("look", {"at": "b"}))), say("Found it.")),
}


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(key=KEY, scripts=SCRIPTS) as running:
        yield running


@contextlib.contextmanager
def client(server: ModelServer, key: str = KEY) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=key, base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0, timeout=5) as made:
        yield made


def ask(server: ModelServer, path: str, body: Any, key: str = KEY, **fields: str) -> tuple[int, bytes]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", raw, {"authorization": f"Bearer {key}"} | fields)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_chat_completions_whole_and_streamed_say_the_same(server: ModelServer) -> None:
    """The official client reads one answer from both forms, usage included."""
    with client(server) as model:
        whole = model.chat.completions.create(model="talker", messages=[{"role": "user", "content": "hello"}])
        streamed, usage = "", None
        for chunk in model.chat.completions.create(
            model="talker", messages=[{"role": "user", "content": "hello"}], stream=True, stream_options={"include_usage": True}
        ):
            streamed += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage or usage
    assert whole.choices[0].message.content == streamed == LONG
    assert whole.choices[0].finish_reason == "stop"
    assert usage is not None
    assert usage == whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0


def test_usage_is_streamed_only_when_asked_for(server: ModelServer) -> None:
    """Without stream_options no chunk has usage, and each has a choice."""
    with client(server) as model:
        chunks = list(model.chat.completions.create(model="talker", messages=[{"role": "user", "content": "hello"}], stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert len(chunks) > 5


def test_chat_tool_calls_go_round(server: ModelServer) -> None:
    """Two parallel calls come with arguments whole, streamed or not; with their results the script goes on."""
    messages: list[Any] = [{"role": "user", "content": "find it"}]
    with client(server) as model:
        whole = model.chat.completions.create(model="worker", messages=messages)
        with model.chat.completions.stream(model="worker", messages=messages) as stream:
            streamed = stream.get_final_completion()
        for answer in (whole, streamed):
            message = answer.choices[0].message
            assert answer.choices[0].finish_reason == "tool_calls"
            assert message.content == "I look it up."
            made = [call.function for call in message.tool_calls or [] if call.type == "function"]
            assert [(call.name, json.loads(call.arguments)) for call in made] == [("look", {"at": "ä"}), ("look", {"at": "b"})]
        messages.append(whole.choices[0].message.model_dump(exclude_none=True))
        messages += [{"role": "tool", "tool_call_id": f"call_0_{number}", "content": "here"} for number in range(2)]
        last = model.chat.completions.create(model="worker", messages=messages)
    assert last.choices[0].message.content == "Found it."


def test_responses_whole_and_streamed_say_the_same(server: ModelServer) -> None:
    """The official client accumulates the events to the very response it gets whole."""
    with client(server) as model:
        whole = model.responses.create(model="talker", input="hello", instructions="be brief")
        with model.responses.stream(model="talker", input="hello", instructions="be brief") as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
    assert whole.output_text == streamed.output_text == LONG
    assert whole.usage is not None
    assert streamed.usage is not None
    assert whole.usage.total_tokens == streamed.usage.total_tokens > 0
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_responses_tool_calls_go_round(server: ModelServer) -> None:
    """Function calls come with their arguments; outputs as items, or by previous_response_id, lead to the next answer."""
    outputs: list[Any] = [{"type": "function_call_output", "call_id": f"call_0_{number}", "output": "here"} for number in range(2)]
    with client(server) as model:
        with model.responses.stream(model="worker", input=[{"role": "user", "content": "find it"}]) as stream:
            first = stream.get_final_response()
        calls = [item for item in first.output if item.type == "function_call"]
        assert [json.loads(item.arguments) for item in calls] == [{"at": "ä"}, {"at": "b"}]
        items: list[Any] = [{"role": "user", "content": "find it"}, *[item.model_dump(exclude_none=True) for item in first.output], *outputs]
        assert model.responses.create(model="worker", input=items).output_text == "Found it."
        assert model.responses.create(model="worker", input=outputs, previous_response_id=first.id).output_text == "Found it."
        with pytest.raises(openai.BadRequestError, match="unknown here"):
            model.responses.create(model="worker", input=outputs, previous_response_id="resp_never")


def test_messages_whole_and_streamed(server: ModelServer) -> None:
    """Anthropic's shape: blocks, stop reason and usage; the events add up to the same blocks; tool results lead on."""
    body: dict[str, Any] = {"model": "worker", "max_tokens": 100, "system": "be brief", "messages": [{"role": "user", "content": "find it"}]}
    status, raw = ask(server, "/v1/messages", body, key="wrong", **{"x-api-key": KEY})
    assert status == 401, "a wrong bearer is not saved by a right x-api-key"
    status, raw = ask(server, "/v1/messages", body)
    whole = json.loads(raw)
    assert (status, whole["stop_reason"], [block["type"] for block in whole["content"]]) == (200, "tool_use", ["text", "tool_use", "tool_use"])
    assert whole["usage"]["output_tokens"] > 0

    status, raw = ask(server, "/v1/messages", body | {"stream": True})
    events = [json.loads(line.removeprefix(b"data: ")) for line in raw.splitlines() if line.startswith(b"data: ")]
    named = [line.removeprefix(b"event: ").decode() for line in raw.splitlines() if line.startswith(b"event: ")]
    assert [event["type"] for event in events] == named
    assert (named[0], named[-1]) == ("message_start", "message_stop")
    text = "".join(event["delta"]["text"] for event in events if event.get("delta", {}).get("type") == "text_delta")
    first = "".join(event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta" and event["index"] == 1)
    assert text == whole["content"][0]["text"]
    assert json.loads(first) == whole["content"][1]["input"]
    assert next(event for event in events if event["type"] == "message_delta")["usage"]["output_tokens"] == whole["usage"]["output_tokens"]

    results = [{"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "here"}]} for block in whole["content"][1:]]
    body["messages"] += [{"role": "assistant", "content": whole["content"]}, {"role": "user", "content": results}]
    assert json.loads(ask(server, "/v1/messages", body)[1])["content"] == [{"type": "text", "text": "Found it."}]


def test_models_are_listed(server: ModelServer) -> None:
    """The scripted models can be listed and fetched; another is not found."""
    with client(server) as model:
        assert {entry.id for entry in model.models.list()} >= set(SCRIPTS)
        assert model.models.retrieve("talker").id == "talker"
        with pytest.raises(openai.NotFoundError):
            model.models.retrieve("nobody")


def test_a_wrong_key_is_refused_and_noted(server: ModelServer) -> None:
    """Without the key there is no answer, in the API's own shape; the journal tells right, wrong and none apart and holds no key."""
    with client(server, "sk-placeholder") as model, pytest.raises(openai.AuthenticationError):
        model.responses.create(model="talker", input="hello")
    with client(server) as model:
        model.responses.create(model="talker", input="hello")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v1/models", timeout=5)
    refused.value.close()
    assert [seen["credential"] for seen in server.journal()] == ["wrong", "right", "none"]
    assert KEY not in json.dumps(server.journal())
    assert [request.bearer() for request in server.requests] == ["sk-placeholder", KEY, None]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/responses", b"{", 400),
        ("/v1/responses", [], 400),
        ("/v1/responses", {"model": "talker"}, 400),
        ("/v1/responses", {"model": "talker", "input": [1]}, 400),
        ("/v1/responses", {"model": "talker", "input": [{"type": "image_generation_call"}]}, 400),
        ("/v1/chat/completions", {"model": 7, "messages": []}, 400),
        ("/v1/chat/completions", {"model": "talker", "messages": [{"role": "wizard"}]}, 400),
        ("/v1/messages", {"model": "talker", "messages": []}, 400),
        ("/v1/embeddings", {}, 404),
    ],
)
def test_bad_requests_are_refused(server: ModelServer, path: str, body: Any, status: int) -> None:
    """What is not the API's is a 4xx with an error object, never a broken connection."""
    got, raw = ask(server, path, body)
    assert got == status
    assert "error" in json.loads(raw)


def test_equal_requests_have_equal_answers(server: ModelServer) -> None:
    """The server is deterministic to the byte, so a retry can be compared."""
    body = {"model": "talker", "input": "hello", "stream": True}
    assert ask(server, "/v1/responses", body) == ask(server, "/v1/responses", body)


def faulty(server: ModelServer, model: str) -> list[Any]:
    with client(server) as asked:
        return list(asked.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}], stream=True, timeout=0.5))


@pytest.mark.parametrize(("model", "error"), [
    ("scripted-429", openai.RateLimitError),
    ("scripted-500", openai.InternalServerError),
    ("scripted-reset", openai.APIConnectionError),
    ("scripted-garbage", openai.APIConnectionError),
    ("scripted-hang", openai.APITimeoutError),
])  # fmt: skip
def test_faults_before_an_answer(server: ModelServer, model: str, error: type[Exception]) -> None:
    """Each fault is the one its name says, to the official client."""
    assert model in FAULTS
    with pytest.raises(error):
        faulty(server, model)


@pytest.mark.parametrize("model", ["scripted-half-chunk", "scripted-reset-midway", "scripted-hang-midway"])
def test_faults_in_the_middle(server: ModelServer, model: str) -> None:
    """The first event arrives, then the stream breaks or falls silent."""
    raw = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(raw)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), 5) as line:
        line.settimeout(0.5)
        line.sendall(head + raw)
        got, end = b"", ""
        while not end:
            try:
                piece = line.recv(65536)
            except TimeoutError:
                end = "silence"
            except ConnectionResetError:
                end = "reset"
            else:
                got += piece
                end = "" if piece else "closed"
    assert b"200 OK" in got
    assert b"chat.completion.chunk" in got
    assert not got.endswith(b"0\r\n\r\n")
    assert end == {"scripted-half-chunk": "closed", "scripted-reset-midway": "reset", "scripted-hang-midway": "silence"}[model]
    assert got.endswith(b"40\r\ndata: {") == (model == "scripted-half-chunk")


def test_an_endless_answer_ends_with_its_reader(server: ModelServer) -> None:
    """Megabytes come as long as they are read; who goes away is forgotten."""
    with client(server) as model, model.responses.with_streaming_response.create(model="scripted-endless", input="hello", stream=True) as answer:
        taken = 0
        for piece in answer.iter_bytes():
            taken += len(piece)
            if taken > 4_000_000:
                break
    assert taken > 4_000_000


def test_it_stops_while_somebody_hangs() -> None:
    """Stopping does not wait for a client that waits for us."""
    with contextlib.ExitStack() as running:
        server = running.enter_context(ModelServer(key=KEY))
        with socket.create_connection(("127.0.0.1", server.port), 5) as line:
            raw = json.dumps({"model": "scripted-hang", "input": "hello"}).encode()
            line.sendall(f"POST /v1/responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
            deadline = time.monotonic() + 5
            while not server.seen and time.monotonic() < deadline:
                pass
            begun = time.monotonic()
            running.close()
            assert time.monotonic() - begun < 2
            assert line.recv(1) == b""


def test_over_tls() -> None:
    """The official client, told the authority, reaches it by name; one that is not told refuses it."""
    authority = Authority.create("test")
    with ModelServer(key=KEY, scripts={"talker": in_order(call("look"))}, tls=authority.server_context("localhost")) as server:
        url = f"https://localhost:{server.port}/v1"
        trusting = openai.DefaultHttpxClient(verify=authority.client_context())
        with openai.OpenAI(api_key=KEY, base_url=url, http_client=trusting, max_retries=0, timeout=5) as model:
            answer = model.responses.create(model="talker", input="hello")
            assert [item.type for item in answer.output] == ["function_call"]
        with openai.OpenAI(api_key=KEY, base_url=url, max_retries=0, timeout=5) as model, pytest.raises(openai.APIConnectionError):
            model.responses.create(model="talker", input="hello")
