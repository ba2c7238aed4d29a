"""Memories for engines that serve them: their rules, and exports in the form that each can read."""
