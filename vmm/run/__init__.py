"""One run of a machine: its threads and consoles, what ended it and why, what was traced and timed."""
