"""A paper, live: its grid, its tables beside the published ones, and what can be said of its claims."""
