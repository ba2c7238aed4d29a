"""Studies as other people's tools see them, by their own clients."""
