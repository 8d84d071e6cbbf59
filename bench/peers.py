"""The peers of `bench.gateway`: nginx as its upstream and as a proxy, and two proxies in Python in an environment of their own (`.tools/bench`)."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.installation import PLAIN, SECURE
from bench.load import NAME

ENVIRONMENT = Path(".tools/bench")
LOCK = Path("requirements/bench.txt")
SETUP_SECONDS_MAX = 150
BIG = "/big"  # at the upstream: a body of zeros

# 1 KB of what an API says. (A body of one repeated byte is the worst case of a substring search, and nobody's answer.)
ANSWER = json.dumps([{"id": f"cfg-{number:04x}", "name": "staging/service", "value": number * 37, "enabled": number % 2 == 0} for number in range(20)])[:1024]

NGINX = """
daemon off; master_process off; worker_processes 1; pid {directory}/{name}.pid; error_log {directory}/{name}.log error;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;
  uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
  {body}
}}
"""


def nginx(directory: Path, name: str, body: str) -> subprocess.Popen[bytes]:
    path = directory / f"{name}.conf"
    path.write_text(NGINX.format(directory=directory, name=name, body=body))
    return subprocess.Popen([shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(path), "-p", str(directory)], stderr=subprocess.DEVNULL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


AIOHTTP = """
import sys
import aiohttp
from aiohttp import web

async def forward(request):
    async with request.app["session"].request(request.method, sys.argv[1] + request.path_qs, headers={"Authorization": "Bearer x"}) as upstream:
        kept = {name: upstream.headers[name] for name in ("Content-Type", "Content-Length")}
        answer = web.StreamResponse(status=upstream.status, headers=kept)
        await answer.prepare(request)
        async for piece in upstream.content.iter_any():
            await answer.write(piece)
        await answer.write_eof()
        return answer

async def session(app):
    app["session"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    yield
    await app["session"].close()

app = web.Application()
app.cleanup_ctx.append(session)
app.router.add_route("*", "/{path:.*}", forward)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None, access_log=None)
"""


class Peers:
    """Processes, and where each listens; `skipped` says why one is not there."""

    def __init__(self, directory: Path, pem: Path, ca: Path, port: int, big_bytes: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self.skipped: dict[str, str] = {}
        big = directory / "big"
        with big.open("wb") as file:
            file.truncate(big_bytes)  # takes no room
        keys = f"ssl_certificate {pem}; ssl_certificate_key {pem};"
        serve = f"location = {BIG} {{ alias {big}; sendfile on; }} location / {{ default_type application/json; return 200 '{ANSWER}'; }}"
        self._start(nginx(directory, "upstream", f"server {{ listen {PLAIN}:{port}; {serve} }} server {{ listen {SECURE}:{port} ssl; {keys} {serve} }}"))
        forward = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Authorization "Bearer x";'
        verify = f"proxy_ssl_trusted_certificate {ca}; proxy_ssl_verify on; proxy_ssl_name {NAME}; proxy_ssl_server_name on;"
        pool = "upstream u {{ server {}:{}; keepalive 128; keepalive_requests 100000000; }}"
        front, front_tls = free_port(), free_port()
        plain = f"{pool.format(PLAIN, port)} server {{ listen 127.0.0.1:{front}; location / {{ proxy_pass http://u; {forward} }} }}"
        self.plain = (self._start(nginx(directory, "plain", plain)), front)
        tls = f"{pool.format(SECURE, port)} server {{ listen 127.0.0.1:{front_tls} ssl; {keys} location / {{ proxy_pass https://u; {forward} {verify} }} }}"
        self.tls = (self._start(nginx(directory, "tls", tls)), front_tls)
        self.others = dict(self._others(directory, port))

    def _start(self, process: subprocess.Popen[bytes]) -> int:
        self._processes.append(process)
        return process.pid

    def _others(self, directory: Path, port: int) -> Iterator[tuple[str, tuple[int, int]]]:
        why = environment()
        script = directory / "aiohttp_proxy.py"
        script.write_text(AIOHTTP)
        for name in ("aiohttp", "mitmproxy"):
            if why:
                self.skipped[name] = why
                continue
            front = free_port()
            command = [str(ENVIRONMENT / "bin/python"), str(script), f"http://{PLAIN}:{port}", str(front)]
            if name == "mitmproxy":
                target = f"reverse:http://{PLAIN}:{port}"
                command = [str(ENVIRONMENT / "bin/mitmdump"), "-q", "--mode", target, "--listen-host", "127.0.0.1", "-p", str(front)]
                command += ["--set", f"confdir={directory}/mitmproxy", "--modify-headers", "/~q/Authorization/Bearer x"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self._start(process)
            if answers(front):
                yield name, (process.pid, front)
            else:
                self.skipped[name] = "it does not listen within 20 s"

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def environment() -> str:
    """Makes the peers' environment from its lock; why there is none, or nothing."""
    done = ENVIRONMENT / "done"
    lock = LOCK.read_text()
    if done.exists() and done.read_text() == lock:
        return ""
    try:
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True, capture_output=True, timeout=SETUP_SECONDS_MAX)
        install = [str(ENVIRONMENT / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes", "-r", str(LOCK)]
        subprocess.run(install, check=True, capture_output=True, timeout=SETUP_SECONDS_MAX)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{LOCK} could not be installed in {ENVIRONMENT} ({type(error).__name__})"
    done.write_text(lock)
    return ""


def answers(port: int, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.05)
    return False
