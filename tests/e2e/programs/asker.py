"""Asks Anthropic's Messages API twice: by hand, whole, and through litellm, streaming. Where the model is and what key it takes, the environment says."""

import json
import os
import sys
import urllib.request

MODEL = "claude-sonnet-4-5"
task = sys.argv[1]
body = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": task}]}
fields = {"content-type": "application/json", "x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01"}
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", json.dumps(body).encode(), fields)
with urllib.request.urlopen(request, timeout=30) as answer:
    print("whole:", json.load(answer)["content"][0]["text"])

import litellm  # noqa: E402  (it takes its time)

tool = {"type": "function", "function": {"name": "look", "description": "Look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}}
chunks = litellm.completion(model=f"anthropic/{MODEL}", messages=[{"role": "user", "content": task}], tools=[tool], max_tokens=200, stream=True)
deltas = [chunk.choices[0].delta for chunk in chunks]
text = "".join(delta.content or "" for delta in deltas)
calls = [call.function for delta in deltas for call in delta.tool_calls or []]
print("streamed:", text, "|", next(call.name for call in calls if call.name), "".join(call.arguments or "" for call in calls))
