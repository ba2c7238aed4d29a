"""A trial: one placement trained and measured for one user, on a borrowed base. No Ray."""
