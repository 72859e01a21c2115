"""Device models: each sees offsets, sizes and values, and does not know where it lives."""
