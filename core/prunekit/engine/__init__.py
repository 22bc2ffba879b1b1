"""The run: its phases, its steps, its state, and what is measured."""
