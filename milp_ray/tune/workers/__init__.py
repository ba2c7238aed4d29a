"""What runs in workers, alone or in groups: the resident base, a trial in slices, failures."""
