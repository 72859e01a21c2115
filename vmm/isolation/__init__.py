"""Machines in processes of their own: `channel` is between them, `machine` the caller's side, `child` the other."""
