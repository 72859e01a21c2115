"""A debugger's way into a machine: the gdb remote protocol, served on a socket."""
