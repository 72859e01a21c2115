"""What a run found out: as data, as text, as a page."""
