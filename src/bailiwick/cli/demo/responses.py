"""The OpenAI Responses API for the scripted model; the other two dialects, and what they share, are in `dialects`."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from bailiwick.cli.demo.dialects import CREATED, Asked, Unintelligible, event, field, flatten, objects, openai_refusal, opened, pieces, spent
from bailiwick.cli.demo.scripts import Answer, Conversation, Turn


class Responses:
    """`known` holds the conversations that `previous_response_id` may go on from."""

    def read(self, document: Any, known: Mapping[str, Conversation]) -> Asked:
        turns: list[Turn] = []
        previous = document.get("previous_response_id") if isinstance(document, dict) else None
        if previous is not None:
            if not isinstance(previous, str) or previous not in known:
                raise Unintelligible(f"previous_response_id {previous!r} is unknown here")
            turns += known[previous].turns
        if isinstance(document, dict) and document.get("instructions"):
            turns.append(Turn("system", str(document["instructions"])))
        given = document.get("input") if isinstance(document, dict) else None
        if isinstance(given, str):
            turns.append(Turn("user", given))
        else:
            self._add(turns, field(document, "input", list))
        tools = [str(tool.get("name", tool.get("type", ""))) for tool in objects(document, "tools")]
        return opened(document, turns, tools)

    @staticmethod
    def _add(turns: list[Turn], items: list[Any]) -> None:
        """Neighbouring items of the assistant (text, calls, reasoning) are one answer of the model."""
        speaking = False
        for item in items:
            kind = field(item, "type", str, "message")
            if kind == "function_call_output":
                turns.append(Turn("tool", flatten(item.get("output", ""))))
                speaking = False
            elif kind in ("function_call", "reasoning") or item.get("role") == "assistant":
                calls = int(kind == "function_call")
                if speaking:
                    last = turns.pop()
                    turns.append(Turn("assistant", last.text + flatten(item.get("content")), last.calls + calls))
                else:
                    turns.append(Turn("assistant", flatten(item.get("content")), calls))
                speaking = True
            elif kind == "message":
                role: Literal["system", "user"] = "user" if item.get("role") == "user" else "system"
                turns.append(Turn(role, flatten(item.get("content"))))
                speaking = False
            else:
                raise Unintelligible(f"input item of type {kind!r}; must be message, function_call, function_call_output or reasoning")

    def body(self, asked: Asked, answer: Answer) -> dict[str, Any]:
        return self._response(asked, "completed", self._items(asked, answer), answer)

    def events(self, asked: Asked, answer: Answer) -> Iterator[bytes]:
        number = -1

        def say(kind: str, **fields: Any) -> bytes:
            nonlocal number
            number += 1
            return event({"type": kind, "sequence_number": number} | fields, kind)

        begun = self._response(asked, "in_progress", [], None)
        yield say("response.created", response=begun)
        yield say("response.in_progress", response=begun)
        items = self._items(asked, answer)
        for index, item in enumerate(items):
            at = {"output_index": index, "item_id": item["id"]}
            if item["type"] == "message":
                yield say("response.output_item.added", output_index=index, item=item | {"status": "in_progress", "content": []})
                part = item["content"][0]
                yield say("response.content_part.added", content_index=0, part=part | {"text": ""}, **at)
                for piece in pieces(part["text"]):
                    yield say("response.output_text.delta", content_index=0, delta=piece, logprobs=[], **at)
                yield say("response.output_text.done", content_index=0, text=part["text"], logprobs=[], **at)
                yield say("response.content_part.done", content_index=0, part=part, **at)
            else:
                yield say("response.output_item.added", output_index=index, item=item | {"status": "in_progress", "arguments": ""})
                for piece in pieces(item["arguments"]):
                    yield say("response.function_call_arguments.delta", delta=piece, **at)
                yield say("response.function_call_arguments.done", arguments=item["arguments"], name=item["name"], **at)
            yield say("response.output_item.done", output_index=index, item=item)
        yield say("response.completed", response=self._response(asked, "completed", items, answer))

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return openai_refusal(status, message)

    @staticmethod
    def _items(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        if answer.text:
            part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
            items.append({"type": "message", "id": f"msg_{asked.identity}", "status": "completed", "role": "assistant", "content": [part]})
        step = asked.conversation.steps
        for index, made in enumerate(answer.calls):
            call = {"type": "function_call", "id": f"fc_{asked.identity}_{index}", "call_id": f"call_{step}_{index}", "name": made.name}
            items.append(call | {"arguments": made.text(), "status": "completed"})
        return items

    @staticmethod
    def _response(asked: Asked, status: str, items: list[dict[str, Any]], answer: Answer | None) -> dict[str, Any]:
        usage = None
        if answer is not None:
            given, made = asked.conversation.words(), spent(answer)
            usage = {"input_tokens": given, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": made}
            usage |= {"output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": given + made}
        return {
            "id": f"resp_{asked.identity}",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": asked.conversation.model,
            "output": items,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": usage,
        }
