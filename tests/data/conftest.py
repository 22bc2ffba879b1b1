"""What lies here is read by tests and is no test; some of it does not even import."""

collect_ignore_glob = ["*"]
