"""Which addresses a name may turn out to be. Anything the IANA registries call special is refused, however it is written or wrapped.

The list is ours and whole, because `ipaddress.is_global` differs between Python versions and knows neither the embeddings nor the clouds' addresses.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# IANA IPv4 and IPv6 Special-Purpose Address Registries, multicast, and addresses that clouds give to themselves.
_IPV4 = {
    "0.0.0.0/8": "this network", "10.0.0.0/8": "private", "100.64.0.0/10": "shared", "127.0.0.0/8": "loopback", "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private", "192.0.0.0/24": "protocol assignments", "192.0.2.0/24": "documentation", "192.31.196.0/24": "AS112",
    "192.52.193.0/24": "AMT", "192.88.99.0/24": "6to4 relay", "192.168.0.0/16": "private", "192.175.48.0/24": "AS112", "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation", "203.0.113.0/24": "documentation", "224.0.0.0/4": "multicast", "240.0.0.0/4": "reserved",
    "168.63.129.16/32": "cloud metadata",
}  # fmt: skip
_IPV6 = {
    "::/8": "reserved", "64:ff9b:1::/48": "local translation", "100::/64": "discard", "100:0:0:1::/64": "dummy", "2001::/23": "protocol assignments",
    "2001:db8::/32": "documentation", "2620:4f:8000::/48": "AS112", "3fff::/20": "documentation", "5f00::/16": "segment routing", "fc00::/7": "private",
    "fe80::/10": "link-local", "fec0::/10": "site-local", "ff00::/8": "multicast",
}  # fmt: skip
_IPV4_NETWORKS = [(IPv4Network(network), says) for network, says in _IPV4.items()]
_IPV6_NETWORKS = [(IPv6Network(network), says) for network, says in _IPV6.items()]
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_TEREDO = IPv6Network("2001::/32")
_COMPATIBLE = IPv6Network("::/96")


def special_purpose(address: str) -> str | None:
    """What makes this address one that is refused; None for an ordinary address of the public internet. Text that is no address is refused too."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return "not an address"
    return _ipv4(parsed) if isinstance(parsed, IPv4Address) else _ipv6(parsed)


def _ipv4(address: IPv4Address) -> str | None:
    for network, says in _IPV4_NETWORKS:
        if address in network:
            return says
    return None


def _ipv6(address: IPv6Address) -> str | None:
    number = int(address)
    if address in (IPv6Address("::"), IPv6Address("::1")):
        return "loopback"
    embedded: IPv4Address | None = None
    if address.ipv4_mapped is not None:
        embedded = address.ipv4_mapped
    elif address.sixtofour is not None:
        embedded = address.sixtofour
    elif address in _NAT64:  # how an IPv6-only host reaches IPv4; what is inside decides
        return _ipv4(IPv4Address(number & 0xFFFFFFFF))
    elif address in _COMPATIBLE:
        embedded = IPv4Address(number & 0xFFFFFFFF)
    elif address in _TEREDO:
        return "teredo"
    if embedded is not None:
        inside = _ipv4(embedded)
        return f"{inside}, inside IPv6" if inside else "IPv4 inside IPv6"  # no honest answer needs it: the name has an A record for that
    for network, says in _IPV6_NETWORKS:
        if address in network:
            return says
    return None if address in _GLOBAL_UNICAST else "not global unicast"
