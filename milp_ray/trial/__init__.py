"""A trial: one placement trained and measured for one user, on a base that is given back. No Ray."""
