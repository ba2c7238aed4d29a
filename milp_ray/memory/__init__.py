"""Memory spaces, placements and adapters. Import the modules: space.py needs no torch; adapters.py does."""
