"""Python's side of the software CPU."""
