"""Ax, which nothing else here imports: its generators as surrogates, and searches as its experiments."""
