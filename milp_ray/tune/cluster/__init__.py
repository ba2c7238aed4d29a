"""The Ray that a run works on: found or started, its address, token, resources, processes, dashboard."""
