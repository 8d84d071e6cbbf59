"""The sandbox: a sealed place for one run. Backends behind one port, the sealed network, limits, the attested start.

The launcher process is the only one that enters namespaces, writes cgroups or starts a sandbox; it takes small typed requests and parses nothing
hostile. It keeps every listener's descriptor, so that a restarted gateway is handed the same sockets again.

Never: degrade in silence. What a backend cannot guarantee it refuses, and says in its capabilities.
"""
