"""What a machine is: options and arguments parsed once, checked once, then frozen."""
