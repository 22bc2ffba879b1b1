"""One page of HTML for a run, or for runs side by side: nothing in it is fetched, and nothing in a file acts in it."""
