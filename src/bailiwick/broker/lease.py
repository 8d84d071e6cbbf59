"""Leases: being built."""
