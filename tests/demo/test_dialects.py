import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.cli.demo.dialects import ChatCompletions, Dialect, Messages, Unintelligible
from bailiwick.cli.demo.responses import Responses
from bailiwick.cli.demo.scripts import Answer, ToolCall

DIALECTS: dict[str, Dialect] = {"chat": ChatCompletions(), "responses": Responses(), "messages": Messages()}

KEYS = st.sampled_from(
    ["model", "messages", "input", "tools", "stream", "stream_options", "role", "content", "type", "text", "output", "function", "name", "max_tokens",
     "tool_calls", "system", "instructions", "previous_response_id", "include_usage"]
)  # fmt: skip
WORDS = st.sampled_from(["user", "assistant", "tool", "message", "function_call", "function_call_output", "reasoning", "text", "tool_use", "tool_result"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
REQUESTS = JSON | st.builds(
    lambda document, turns: document | {"model": "m", "max_tokens": 5, "messages": turns, "input": turns},
    st.dictionaries(KEYS, JSON, max_size=5),
    st.lists(JSON, max_size=4),
)
ANSWERS = st.builds(
    Answer, st.text(max_size=60), st.lists(st.builds(ToolCall, st.just("t"), st.dictionaries(st.text(max_size=3), JSON, max_size=2)), max_size=3).map(tuple)
)


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=80, deadline=None)
@given(document=REQUESTS)
def test_any_request_is_understood_or_refused(name: str, document: Any) -> None:
    """No JSON breaks the reader: it is a conversation, or Unintelligible with a sentence."""
    try:
        asked = DIALECTS[name].read(document, {})
    except Unintelligible:
        return
    assert asked.conversation.words() > 0
    assert asked.conversation.steps >= 0


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=60, deadline=None)
@given(answer=ANSWERS)
def test_the_stream_adds_up_to_the_whole(name: str, answer: Answer) -> None:
    """Whatever is answered, the pieces of the stream put together are the body's text and arguments."""
    dialect = DIALECTS[name]
    asked = dialect.read({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], "input": "x"}, {})
    events = [json.loads(line[6:]) for event in dialect.events(asked, answer) for line in event.decode().split("\n") if line.startswith("data: {")]
    text, arguments = "", ""
    for event in events:
        delta = event.get("delta", {})
        match event.get("type", ""):
            case "response.output_text.delta":
                text += delta
            case "response.function_call_arguments.delta":
                arguments += delta
            case "content_block_delta":
                text += delta.get("text", "")
                arguments += delta.get("partial_json", "")
            case "":
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    arguments += "".join(call["function"]["arguments"] for call in choice["delta"].get("tool_calls", []))
    assert text == answer.text
    made = [json.loads(part) for part in _objects(arguments)]
    assert made == [dict(call.arguments) for call in answer.calls]


def _objects(text: str) -> list[str]:
    """The JSON objects that stand one after the other."""
    decoder, found = json.JSONDecoder(), []
    while text:
        _, end = decoder.raw_decode(text)
        found.append(text[:end])
        text = text[end:]
    return found
