"""The HTTP API: parse, call, render; decides nothing. Operators are authenticated by the socket they came in on, or by a token."""
