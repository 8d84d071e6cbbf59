"""Configuration to objects to one group of processes: the only room that wires the others together.

`configuration` is the whole file, each part in its owner's words; `processes` makes the group; `detached` starts it behind a terminal and knows nothing else,
so that a command which only needs the group to be there does not load the product.
"""
