"""Firmware images: found, read, identified; and the guests of our own."""
