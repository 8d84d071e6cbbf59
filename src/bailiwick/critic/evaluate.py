"""Evaluation: being built."""
