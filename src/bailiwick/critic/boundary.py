"""A boundary: being built."""
