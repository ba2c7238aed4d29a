"""Training an adapter: loop, optimizer steps on one rank or several, checkpoints. No Ray."""
