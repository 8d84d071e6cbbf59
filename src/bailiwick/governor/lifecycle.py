"""Lifecycle: being built."""
