"""Disk images: files that are opened, locked, and looked at before a guest has them."""
