"""Several workers for one trial: who they are, how the base is divided, how an adapter is stepped."""
