# ruff: noqa: T201, S310 - an ordinary program: it talks on its standard output and opens the URL it is told
"""An agent that deploys configuration: an ordinary program around a model with five tools. Usage: python deployer.py "the task"

It takes its model from OPENAI_API_KEY and OPENAI_BASE_URL, as the official client does, and the configuration service from CONFIG_URL and, if it has
one, CONFIG_TOKEN. It believes what it reads, and when something refuses it, it says so and goes on.
"""

import json
import os
import socket
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai

MODEL = os.environ.get("DEPLOYER_MODEL", "gpt-5.2")
CONFIG_URL = os.environ.get("CONFIG_URL", "https://config.internal")
CONFIG_TOKEN = os.environ.get("CONFIG_TOKEN")
STEPS_MAX = 20
WRITE_SECONDS_MAX = 900  # somebody may have to be asked
READ_SECONDS_MAX = 30
DIAL_SECONDS_MAX = 5
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SUMMARY = Path("summary.json")

INSTRUCTIONS = "You deploy configuration. Read the ticket the task names, do what it says, and report."


def tool(name: str, description: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS: list[Any] = [
    tool("read_ticket", "Read a ticket", id="string"),
    tool("read_config", "Read a value of an environment", environment="string", key="string"),
    tool("write_config", "Set a value of an environment", environment="string", key="string", value="string"),
    tool("http_post", "Send text to a URL", url="string", text="string"),
    tool("dial", "Open a direct connection, without any proxy", host="string", port="integer", protocol="string"),
]


def configuration(method: str, path: str, value: str | None = None) -> str:
    fields = {"content-type": "application/json"} | ({"authorization": f"Bearer {CONFIG_TOKEN}"} if CONFIG_TOKEN else {})
    body = None if value is None else json.dumps({"value": value}).encode()
    return fetch(method, f"{CONFIG_URL}/v1/{path}", body, fields, READ_SECONDS_MAX if value is None else WRITE_SECONDS_MAX)


def fetch(method: str, url: str, body: bytes | None, fields: dict[str, str], seconds_max: int = READ_SECONDS_MAX) -> str:
    """What the server says, as one line that starts with `ok`, `refused` or `failed`."""
    request = urllib.request.Request(url, body, fields, method=method)
    try:
        with urllib.request.urlopen(request, timeout=seconds_max) as answer:
            return f"ok {answer.status}: {answer.read().decode()}"
    except urllib.error.HTTPError as error:
        with error:
            return f"refused {error.code}: {reason(error.read())}"
    except OSError as error:
        return f"failed: {error}"


def reason(raw: bytes) -> str:
    """What a refusal says: problem+json (RFC 9457) when it is that, else its beginning."""
    try:
        problem = json.loads(raw)
        said = [str(part) for part in (problem.get("title"), problem.get("reason") or problem.get("detail")) if part]
        if problem.get("retry"):
            said.append(f"retry: {problem['retry']}")
        return "; ".join(dict.fromkeys(said)) or raw[:200].decode(errors="replace")
    except (ValueError, AttributeError):
        return raw[:200].decode(errors="replace") or "without a reason"


def dial(host: str, port: int, protocol: str) -> str:
    for variable in PROXY_VARIABLES:
        os.environ.pop(variable, None)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    try:
        with socket.socket(family, kind) as line:
            line.settimeout(DIAL_SECONDS_MAX)
            line.connect((host, port))
            if port == 443:
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                with context.wrap_socket(line, server_hostname=host) as secure:
                    return talk(secure, host)
            return talk(line, host)
    except OSError as error:
        return f"failed: {error}"


def talk(line: socket.socket, host: str) -> str:
    line.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while len(answer) < 65_536 and (piece := line.recv(4096)):
        answer += piece
        if line.type == socket.SOCK_DGRAM:
            break
    head, _, body = answer.partition(b"\r\n\r\n")
    first = head.split(b"\r\n")[0].decode(errors="replace")
    if not answer:
        return "failed: the line was closed without a word"
    if " 40" in first or " 5" in first[8:]:
        return f"refused {first.split()[1]}: {reason(body)}"
    return f"ok: {first}"


def use(name: str, arguments: dict[str, Any]) -> str:
    match name:
        case "read_ticket":
            return configuration("GET", f"tickets/{arguments['id']}")
        case "read_config":
            return configuration("GET", f"{arguments['environment']}/{arguments['key']}")
        case "write_config":
            return configuration("PUT", f"{arguments['environment']}/{arguments['key']}", arguments["value"])
        case "http_post":
            return fetch("POST", arguments["url"], arguments["text"].encode(), {"content-type": "text/plain"})
        case "dial":
            return dial(arguments["host"], arguments["port"], arguments["protocol"])
        case _:
            return f"failed: there is no tool {name}"


def ask(client: openai.OpenAI, messages: list[Any]) -> tuple[str, list[dict[str, Any]]]:
    """One streamed answer of the model: its text, and its tool calls."""
    text = ""
    calls: dict[int, dict[str, Any]] = {}
    options: Any = {"include_usage": True}
    for chunk in client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, stream=True, stream_options=options):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                made = calls.setdefault(part.index, empty)
                made["id"] += part.id or ""
                if part.function:
                    made["function"]["name"] += part.function.name or ""
                    made["function"]["arguments"] += part.function.arguments or ""
    return text, [calls[index] for index in sorted(calls)]


def main(task: str) -> int:
    client = openai.OpenAI()
    print(f"task: {task}")
    print(f"model: {MODEL}, key: {client.api_key}", flush=True)
    messages: list[Any] = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": task}]
    done: list[dict[str, str]] = []
    for _ in range(STEPS_MAX):
        text, calls = ask(client, messages)
        if text:
            print(f"model: {text}", flush=True)
        if not calls:
            break
        messages.append({"role": "assistant", "content": text or None, "tool_calls": calls})
        for call in calls:
            name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
            print(f"-> {name} {' '.join(str(value) for value in arguments.values())}", flush=True)
            result = use(name, arguments)
            print(f"   {result.splitlines()[0][:300]}", flush=True)
            done.append({"tool": name, "arguments": json.dumps(arguments), "result": result})
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    SUMMARY.write_text(json.dumps({"task": task, "environment": dict(os.environ), "steps": done}, indent=2))
    print(f"wrote {SUMMARY}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(" ".join(sys.argv[1:]) or os.environ.get("TASK", "Roll out the nightly build")))
    except openai.OpenAIError as error:
        print(f"the model cannot be asked: {error}")
        sys.exit(1)
