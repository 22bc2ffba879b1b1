"""The plugin host: kinds, hooks, loading, building."""
