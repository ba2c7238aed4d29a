"""The final job as a Ray Train run: its workers, and the coordinator that hands them users."""
