"""The command line: arguments in, tables and messages out; all work is done by public functions."""
