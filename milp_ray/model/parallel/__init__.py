"""Several workers that share a base: their process group, and how the base is sharded."""
