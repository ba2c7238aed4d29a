"""What a proposal is worth: scaled values, posteriors, and the noisy hypervolume improvement."""
