"""The Ray that a run works on: its address, token, session, resources, processes and dashboard."""
