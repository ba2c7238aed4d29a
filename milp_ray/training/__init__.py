"""Training one placement on one user, without Ray: import base, trial and estimate from here as modules."""
