"""Machines in processes of their own, from the caller's side; the other is `vmm.isolated`."""
