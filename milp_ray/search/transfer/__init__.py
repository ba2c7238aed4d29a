"""What other users' searches say about this one: a multi-task model, a prior, and warm starts."""
