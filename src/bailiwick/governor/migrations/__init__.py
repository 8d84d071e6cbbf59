"""The governor's tables, a step a file."""
