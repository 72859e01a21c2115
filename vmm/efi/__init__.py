"""UEFI applications: what a file is, and how one is run to its end."""
