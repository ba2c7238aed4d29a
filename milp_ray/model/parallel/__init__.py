"""Several workers with one base: who they are, how they meet, and how the base is divided among them."""
