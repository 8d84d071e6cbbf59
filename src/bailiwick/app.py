"""Configuration to objects to one group of processes: the only file that wires the rooms together."""
