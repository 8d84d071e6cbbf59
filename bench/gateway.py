"""What the gateway worker costs a request: ours beside nginx as a proxy of the same upstream (nginx too, 1 KB answers), in the clear and with TLS on both
sides, in interleaved rounds on this machine; and what is left of it when nothing repeats, when writes wait for their intent, when bodies are long.

    python -m bench.gateway [--rounds 5] [--seconds 2] [--connections 32] [--stream-mb 1024] [--stream-seconds 20]

Ours is the real worker and the real recorder, each a process of its own, with every check on: run by its listener, strict parsing, a decision by the
compiled boundary, budget, a leased credential injected and scrubbed from the answer, two events. This process plays the governor, the launcher, the
broker and the agents. CPU is user and system time of one process, from /proc/PID/stat. Figures and bars go to standard error; one line of JSON to
standard output ends it. A peer that cannot be set up is named in `skipped`.
"""

import argparse
import json
import resource
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from bench.installation import SSE, SSE_NAME, Ours
from bench.load import (
    NAME,
    cpu_seconds,
    handshakes,
    idle_connections,
    load,
    p99,
    paced,
    request,
    rss_mb,
    sse_delays,
    streams,
    unseen,
    write,
)  # fmt: skip
from bench.peers import BIG, Peers, free_port
from tests.fakes.neighbourhood import Certificates

from bailiwick.critic.action import Action, HttpResource, Verb
from bailiwick.critic.boundary import CompiledBoundary
from bailiwick.critic.evaluate import Critic
from bailiwick.kernel.ids import RunId

OFFERED_PER_SECOND = 2_500  # reads, hence 5,000 events
IDLE = 1_000
STREAMS = 100
# name: the bar, and whether the figure must be at most or at least it
BARS: dict[str, tuple[float, str]] = {
    "ratio_nginx_plain": (1.5, "<="), "ratio_nginx_tls": (1.75, "<="), "recorder_us_per_event": (60, "<="), "gate_ms_p50": (1.5, "<="),
    "effects_per_s": (1_500, ">="), "sse_delay_ms_p50": (0.2, "<="), "new_tls_host_ms_p50": (0.7, "<="),
}  # fmt: skip

Results = dict[str, list[float]]


def main(options: argparse.Namespace) -> dict[str, Any]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as name:
        directory = Path(name)
        certificates = Certificates()
        certificates.context(NAME, directory)
        (directory / "ca.pem").write_text(certificates.pem)
        port = free_port()
        ours = Ours(directory, certificates, port)
        ours.start()
        peers = Peers(directory, directory / f"{NAME}.pem", directory / "ca.pem", port, options.stream_mb << 20)
        try:
            results: Results = anyio.run(partial(measure, ours, peers, options), backend_options={"use_uvloop": True})
        finally:
            peers.close()
            for process in ours.processes:
                process.kill()
                process.join()
    shown = {kind: round(statistics.median(values), 3) for kind, values in results.items()}
    for kind in ("plain", "tls"):
        shown[f"ratio_nginx_{kind}"] = round(statistics.median(_ratios(results, kind)), 3)
    shown["ratio_nginx_plain_paced"] = round(shown["ours_paced_us"] / shown["nginx_paced_us"], 3)
    return {kind: shown[kind] for kind in BARS} | shown | ({"skipped": peers.skipped} if peers.skipped else {})


def _ratios(results: Results, kind: str) -> list[float]:
    """Round by round: what else the machine does then, both feel."""
    return [ours / nginx for ours, nginx in zip(results[f"ours_{kind}_us"], results[f"nginx_{kind}_us"], strict=True)]


async def measure(ours: Ours, peers: Peers, options: argparse.Namespace) -> Results:
    trust = ssl.create_default_context(cadata=ours.certificates.pem + ours.authority.certificate_pem)
    results: Results = {}
    async with ours.serve() as (pid, recorder):
        await anyio.sleep(0.5)
        await _rounds(ours, peers, options, results, pid, trust)
        await _offered(ours, peers, options, results, pid, recorder)
        await _delays(ours, peers, options, results, trust)
        await _memory(ours, options, results, pid)
    results["fresh_decision_us"] = fresh_decisions(ours)
    return results


async def _rounds(ours: Ours, peers: Peers, options: argparse.Namespace, results: Results, pid: int, trust: ssl.SSLContext) -> None:
    here, there = f"127.0.0.1:{ours.port}", f"{NAME}:{ours.port}"
    cases: list[tuple[str, int, int, bytes | Callable[[], bytes], ssl.SSLContext | None]] = [
        ("nginx_plain", *peers.plain, request("127.0.0.1"), None),
        ("ours_plain", pid, ours.port, request(here), None),
        ("nginx_tls", *peers.tls, request(NAME), trust),
        ("ours_tls", pid, ours.port, request(there), trust),
        ("ours_unseen", pid, ours.port, unseen(here), None),
        ("effects", pid, ours.port, write(here), None),
    ]
    cases += [(name, process, port, request("127.0.0.1"), None) for name, (process, port) in peers.others.items()]
    for number in range(options.rounds + 1):  # the first is thrown away
        for name, process, port, raw, context in cases:
            before, started = cpu_seconds(process), time.perf_counter()
            count, latencies = await load(port, raw, seconds=options.seconds, connections=options.connections, context=context)
            spent = time.perf_counter() - started
            if number and count:
                results.setdefault(f"{name}_us", []).append((cpu_seconds(process) - before) / count * 1e6)
                results.setdefault(f"{name}_ms_p50", []).append(statistics.median(latencies) * 1e3)
                results.setdefault(f"{name}_ms_p99", []).append(p99(latencies) * 1e3)
                results.setdefault(f"{name}_per_s", []).append(count / spent)
            await anyio.sleep(0.2)


async def _offered(ours: Ours, peers: Peers, options: argparse.Namespace, results: Results, pid: int, recorder: int) -> None:
    """At one rate for both: what a request costs where nobody is saturated, and an event at the recorder."""
    for _ in range(max(1, options.rounds)):
        for name, process, port in (("nginx_paced", *peers.plain), ("ours_paced", pid, ours.port)):
            before, recorded = cpu_seconds(process), cpu_seconds(recorder)
            raw = request(f"127.0.0.1:{ours.port}")
            count = await paced(port, raw, per_second=OFFERED_PER_SECOND, seconds=options.seconds, connections=options.connections)
            await anyio.sleep(0.2)
            results.setdefault(f"{name}_us", []).append((cpu_seconds(process) - before) / count * 1e6)
            if process == pid:
                results.setdefault("recorder_us_per_event", []).append((cpu_seconds(recorder) - recorded) / count / 2 * 1e6)
                results.setdefault("events_per_s_offered", []).append(count * 2 / options.seconds)


async def _delays(ours: Ours, peers: Peers, options: argparse.Namespace, results: Results, trust: ssl.SSLContext) -> None:
    here = f"127.0.0.1:{ours.port}"
    for name, port, raw in (
        ("write_ms", ours.port, write(here)), ("nginx_write_ms", peers.plain[1], write(here)),
        ("read_ms", ours.port, request(here)), ("nginx_read_ms", peers.plain[1], request(here)),
    ):  # fmt: skip
        _, latencies = await load(port, raw, seconds=options.seconds, connections=1, context=None)
        results[f"{name}_p50"] = [statistics.median(latencies) * 1e3]
        results[f"{name}_p99"] = [p99(latencies) * 1e3]
    results["gate_ms_p50"] = [results["write_ms_p50"][0] - results["nginx_write_ms_p50"][0]]
    direct = await sse_delays(SSE, ours.port, SSE_NAME, None)
    through = await sse_delays("127.0.0.1", ours.port, f"{SSE_NAME}:{ours.port}", trust)
    results["sse_delay_ms_p50"] = [statistics.median(through) - statistics.median(direct)]
    results["sse_delay_ms_p99"] = [p99(through) - p99(direct)]
    first, again = await handshakes(ours.port, trust, 200)
    results["handshake_first_ms_p50"], results["handshake_again_ms_p50"] = first, again
    results["new_tls_host_ms_p50"] = [late - early for late, early in zip(first, again, strict=True)]


async def _memory(ours: Ours, options: argparse.Namespace, results: Results, pid: int) -> None:
    here = f"127.0.0.1:{ours.port}"
    results["rss_mb"] = [rss_mb(pid)]
    transports = await idle_connections(ours.port, request(here), IDLE)
    results["rss_mb_1000_idle"] = [rss_mb(pid)]
    for transport in transports:
        transport.abort()
    raw = f"GET {BIG} HTTP/1.1\r\nHost: {here}\r\n\r\n".encode()
    size = options.stream_mb << 20
    received, memory = await streams(ours.port, raw, STREAMS, size=size, seconds=options.stream_seconds, pid=pid)
    results["streams_body_mb"], results["streams_received_mb"] = [float(options.stream_mb)], [received / (1 << 20)]
    results["rss_mb_100_streams_first"], results["rss_mb_100_streams_max"] = memory[:1], [max(memory)]


def fresh_decisions(ours: Ours) -> list[float]:
    """A whole decision, nothing remembered, of the boundary that is benched."""
    critic = Critic(CompiledBoundary.from_json(ours.order().boundary))
    resource = HttpResource(scheme="http", host="127.0.0.1", port=ours.port, method="GET", path="/v1/configuration/staging/service")
    action = Action(run=RunId("run-1"), agent="bench", verb=Verb.READ, resource=resource)
    times = []
    for _ in range(1_000):
        started = time.process_time_ns()
        critic.decide_afresh(action)
        times.append((time.process_time_ns() - started) / 1e3)
    return times


def report(shown: dict[str, Any]) -> str:
    lines = []
    for name, (bar, relation) in BARS.items():
        met = shown[name] <= bar if relation == "<=" else shown[name] >= bar
        lines.append(f"{name:24} {shown[name]:>10}   bar {relation} {bar:g}{'' if met else '   MISSED'}")
    for name in ("nginx_plain", "ours_plain", "ours_unseen", "aiohttp", "mitmproxy", "nginx_tls", "ours_tls", "effects"):
        if f"{name}_us" in shown:
            words = (f"{shown[f'{name}_{unit}']:>10} {word}" for unit, word in (("us", "us CPU"), ("ms_p50", "ms p50"), ("ms_p99", "ms p99"), ("per_s", "/s")))
            lines.append(f"{name:12} {' '.join(words)}")
    lines += [f"{name} is not shown: {why}" for name, why in shown.get("skipped", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--stream-mb", type=int, default=1_024, help="the size of each of 100 long bodies")
    parser.add_argument("--stream-seconds", type=float, default=20.0, help="what is not received by then is cut")
    figures = main(parser.parse_args())
    sys.stderr.write(report(figures) + "\n")
    sys.stdout.write(json.dumps(figures) + "\n")
