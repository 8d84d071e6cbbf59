"""Actions: being built."""
