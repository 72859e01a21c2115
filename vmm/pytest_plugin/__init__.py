"""Machines as fixtures of pytest."""
