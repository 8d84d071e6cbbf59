"""Merkle: being built."""
