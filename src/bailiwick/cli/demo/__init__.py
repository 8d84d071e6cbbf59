"""The demo's world: what `bailiwick demo` needs around the product so that its story runs without a key, a network or a daemon.

A scripted model server that speaks OpenAI's and Anthropic's APIs, a configuration service, a stranger who must never be reached, an ordinary agent
that knows nothing of us, and the claims the story ends with, each checked against the record and against what the servers saw.

Everything listens on loopback behind a private authority made at start. The end-to-end tests use the same servers.

Never: a part of the product. Nothing outside `cli` imports this.
"""
