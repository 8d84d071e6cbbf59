"""The three model APIs as pure functions: a request's JSON into a `Conversation`, an `Answer` into a JSON body or server-sent events.

OpenAI Chat Completions, OpenAI Responses, Anthropic Messages. Identifiers are derived from the request, so that equal requests have equal answers.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bailiwick.cli.demo.scripts import Answer, Conversation, Turn

PIECE_CHARACTERS = 12  # of streamed text: small enough that an answer is many events
CREATED = 1_767_225_600  # every answer's `created`; a fixed one keeps them equal


class Unintelligible(Exception):
    """The request's JSON is not what the API defines; the text says where."""


@dataclass(frozen=True, slots=True)
class Asked:
    conversation: Conversation
    stream: bool
    include_usage: bool  # Chat Completions' stream_options; the others always say it
    identity: str  # hex, derived from the request


class Dialect(Protocol):
    """`read` raises Unintelligible. `refusal` is the API's own shape of an error."""

    def read(self, document: Any, known: Mapping[str, Conversation]) -> Asked: ...
    def body(self, asked: Asked, answer: Answer) -> dict[str, Any]: ...
    def events(self, asked: Asked, answer: Answer) -> Iterator[bytes]: ...
    def refusal(self, status: int, message: str) -> dict[str, Any]: ...


def pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


def spent(answer: Answer) -> int:
    return (len(answer.text) + sum(len(call.name) + len(call.text()) for call in answer.calls)) // 4 + 1


def event(value: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def field(document: Any, name: str, kind: type[Any], default: Any = None) -> Any:
    if not isinstance(document, dict):
        raise Unintelligible(f"a {type(document).__name__} where an object is expected")
    value = document.get(name, default)
    if not isinstance(value, kind):
        raise Unintelligible(f"{name} is {json.dumps(value)[:60]}; must be {kind.__name__}")
    return value


def objects(document: Any, name: str) -> list[dict[str, Any]]:
    """The objects of an optional list; what else stands there is overlooked."""
    value = document.get(name)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def flatten(content: Any) -> str:
    """The text of a content field: a string, or a list of typed parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(flatten(part.get("text", part.get("content", ""))) for part in content if isinstance(part, dict))
    return ""


def opened(document: Any, turns: Sequence[Turn], tools: Sequence[str], *, include_usage: bool = True) -> Asked:
    conversation = Conversation(field(document, "model", str), tuple(turns), tuple(tools))
    identity = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:24]
    return Asked(conversation, bool(document.get("stream")), include_usage, identity)


def openai_refusal(status: int, message: str) -> dict[str, Any]:
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": "invalid_api_key" if status == 401 else None}}


class ChatCompletions:
    def read(self, document: Any, known: Mapping[str, Conversation]) -> Asked:
        turns = [self._turn(message) for message in field(document, "messages", list)]
        functions = [tool.get("function") for tool in objects(document, "tools")]
        tools = [str(function.get("name", "")) for function in functions if isinstance(function, dict)]
        options = document.get("stream_options")
        return opened(document, turns, tools, include_usage=bool(isinstance(options, dict) and options.get("include_usage")))

    @staticmethod
    def _turn(message: Any) -> Turn:
        role = field(message, "role", str)
        roles: dict[str, Literal["system", "user", "assistant", "tool"]] = {
            "system": "system",
            "developer": "system",
            "user": "user",
            "assistant": "assistant",
            "tool": "tool",
        }
        if role not in roles:
            raise Unintelligible(f"role is {role!r}; must be one of {', '.join(roles)}")
        return Turn(roles[role], flatten(message.get("content")), len(objects(message, "tool_calls")))

    def body(self, asked: Asked, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None, "annotations": []}
        if answer.calls:
            message["tool_calls"] = self._calls(asked, answer)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason(answer)}
        return self._envelope(asked, "chat.completion") | {"choices": [choice], "usage": self._usage(asked, answer)}

    def events(self, asked: Asked, answer: Answer) -> Iterator[bytes]:
        def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
            value = self._envelope(asked, "chat.completion.chunk")
            value["choices"] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
            if asked.include_usage:
                value["usage"] = None
            return event(value)

        yield chunk({"role": "assistant", "content": "", "refusal": None})
        for piece in pieces(answer.text):
            yield chunk({"content": piece})
        for index, made in enumerate(self._calls(asked, answer)):
            head = {"index": index} | made | {"function": {"name": made["function"]["name"], "arguments": ""}}
            yield chunk({"tool_calls": [head]})
            for piece in pieces(made["function"]["arguments"]):
                yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        yield chunk({}, self._reason(answer))
        if asked.include_usage:
            yield event(self._envelope(asked, "chat.completion.chunk") | {"choices": [], "usage": self._usage(asked, answer)})
        yield b"data: [DONE]\n\n"

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return openai_refusal(status, message)

    @staticmethod
    def _calls(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
        step = asked.conversation.steps
        return [
            {"id": f"call_{step}_{index}", "type": "function", "function": {"name": made.name, "arguments": made.text()}}
            for index, made in enumerate(answer.calls)
        ]

    @staticmethod
    def _reason(answer: Answer) -> str:
        return "tool_calls" if answer.calls else "stop"

    @staticmethod
    def _envelope(asked: Asked, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{asked.identity}", "object": kind, "created": CREATED, "model": asked.conversation.model, "system_fingerprint": "fp_scripted"}

    @staticmethod
    def _usage(asked: Asked, answer: Answer) -> dict[str, Any]:
        prompt, completion = asked.conversation.words(), spent(answer)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


class Messages:
    """Anthropic."""

    def read(self, document: Any, known: Mapping[str, Conversation]) -> Asked:
        if not isinstance(field(document, "max_tokens", int), int) or document["max_tokens"] < 1:
            raise Unintelligible("max_tokens must be at least 1")
        turns = [Turn("system", flatten(document["system"]))] if document.get("system") else []
        for message in field(document, "messages", list):
            turns += self._turns(message)
        return opened(document, turns, [str(tool.get("name", "")) for tool in objects(document, "tools")])

    @staticmethod
    def _turns(message: Any) -> list[Turn]:
        role = field(message, "role", str)
        content = message.get("content")
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
        if role == "assistant":
            return [Turn("assistant", flatten(content), sum(part.get("type") == "tool_use" for part in parts))]
        if role != "user":
            raise Unintelligible(f"role is {role!r}; must be user or assistant")
        results = [Turn("tool", flatten(part.get("content", ""))) for part in parts if part.get("type") == "tool_result"]
        words = flatten(content if isinstance(content, str) else [part for part in parts if part.get("type") == "text"])
        return [*results, *([Turn("user", words)] if words else [])]

    def body(self, asked: Asked, answer: Answer) -> dict[str, Any]:
        usage = {"input_tokens": asked.conversation.words(), "output_tokens": spent(answer), "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return self._envelope(asked) | {"content": self._blocks(asked, answer), "stop_reason": self._reason(answer), "stop_sequence": None, "usage": usage}

    def events(self, asked: Asked, answer: Answer) -> Iterator[bytes]:
        def say(kind: str, **fields: Any) -> bytes:
            return event({"type": kind} | fields, kind)

        usage = {"input_tokens": asked.conversation.words(), "output_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        yield say("message_start", message=self._envelope(asked) | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage})
        yield say("ping")
        for index, block in enumerate(self._blocks(asked, answer)):
            if block["type"] == "text":
                yield say("content_block_start", index=index, content_block={"type": "text", "text": ""})
                for piece in pieces(block["text"]):
                    yield say("content_block_delta", index=index, delta={"type": "text_delta", "text": piece})
            else:
                yield say("content_block_start", index=index, content_block=block | {"input": {}})
                for piece in pieces(json.dumps(block["input"])):
                    yield say("content_block_delta", index=index, delta={"type": "input_json_delta", "partial_json": piece})
            yield say("content_block_stop", index=index)
        yield say("message_delta", delta={"stop_reason": self._reason(answer), "stop_sequence": None}, usage={"output_tokens": spent(answer)})
        yield say("message_stop")

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}
        kind = kinds.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}}

    @staticmethod
    def _blocks(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
        step = asked.conversation.steps
        for index, made in enumerate(answer.calls):
            blocks.append({"type": "tool_use", "id": f"toolu_{step}_{index}", "name": made.name, "input": dict(made.arguments)})
        return blocks

    @staticmethod
    def _reason(answer: Answer) -> str:
        return "tool_use" if answer.calls else "end_turn"

    @staticmethod
    def _envelope(asked: Asked) -> dict[str, Any]:
        return {"id": f"msg_{asked.identity}", "type": "message", "role": "assistant", "model": asked.conversation.model}
