"""A run: its plan, its phases, its state, and going on after a stop."""
