"""Makes the HTTP requests it is told to make, by the standard library, and writes what became of each as a line of JSON.

Its argument is a JSON list of sequences, which run side by side; a sequence is a list of requests: `url`, and optionally `method`, `body`, `fields`,
`timeout` in seconds, `read` (bytes of the answer, then it hangs up), `again` (ask again for as long as nobody answers or a part of the gateway is away),
`pause` (a URL asked for between the answer's head and its body), and a `name` to be found by.
"""

import http.client
import json
import sys
import threading
import time
import urllib.error
import urllib.request

AGAIN_SECONDS = 0.2
AGAIN_SECONDS_MAX = 60.0
SHOWN = 3_000
_writing = threading.Lock()
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def ask(step: dict) -> dict:
    body = None if step.get("body") is None else json.dumps(step["body"]).encode()
    fields = {"content-type": "application/json", **step.get("fields", {})} if body else step.get("fields", {})
    request = urllib.request.Request(step["url"], body, fields, method=step.get("method", "GET"))
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if step.get("direct", True) else []), _Stay())
    try:
        with opener.open(request, timeout=step.get("timeout", 100)) as answer:
            return told(answer.status, answer, step)
    except urllib.error.HTTPError as error:
        with error:
            return told(error.code, error, step)
    except (OSError, http.client.HTTPException) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def told(status: int, answer: http.client.HTTPResponse, step: dict) -> dict:
    if step.get("pause"):
        _direct.open(step["pause"], timeout=100).close()
    kept, size = b"", 0
    said = {"status": status, "fields": {name.lower(): value for name, value in answer.headers.items()}}
    try:
        while size < step.get("read", 1 << 60) and (piece := answer.read1(1 << 16)):
            size += len(piece)
            kept = (kept + piece)[:SHOWN]
        if answer.length and size < step.get("read", 1 << 60):  # read1 does not say so itself
            said["error"] = f"IncompleteRead: {answer.length} bytes are missing"
    except (OSError, http.client.HTTPException) as error:
        said["error"] = f"{type(error).__name__}: {error}"
    said["bytes"] = size
    try:
        said["json"] = json.loads(kept)
    except ValueError:
        said["text"] = kept.decode(errors="replace")
    return said


def persevere(step: dict) -> dict:
    until = time.monotonic() + AGAIN_SECONDS_MAX
    tries = 0
    while True:
        tries += 1
        said = {"tries": tries, **ask(step)}
        if not step.get("again") or (said.get("status", 503) not in (502, 503)) or time.monotonic() > until:
            return said
        time.sleep(AGAIN_SECONDS)


def run(sequence: list[dict]) -> None:
    for step in sequence:
        line = json.dumps({"name": step.get("name", step["url"]), **persevere(step)})
        with _writing:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


threads = [threading.Thread(target=run, args=(sequence,)) for sequence in json.loads(sys.argv[1])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
