"""Budgets: being built."""
