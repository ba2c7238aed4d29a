"""Training an adapter: the loop, the optimizer's steps on one rank or several, checkpoints. No Ray."""
