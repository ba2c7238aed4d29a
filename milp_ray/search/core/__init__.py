"""What a search is made of: records, event log, objectives, fronts, designs, plans."""
