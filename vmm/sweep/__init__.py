"""``vmm sweep``: a matrix of machines, each verified in a process of its own, through any executor."""
