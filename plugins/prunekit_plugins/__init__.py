"""The built-in plugins: a folder per kind, one method per file; they use nothing a stranger could not."""
