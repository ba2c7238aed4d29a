"""Ax, which nothing else imports: its generators as samplers, searches as its experiments."""
