"""Protocol layers: bytes in, protocol events out, and back. No sockets, no clock, no tasks: each can be driven by a test or a fuzzer alone."""
