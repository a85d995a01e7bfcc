"""The page where one looks around in runs: a local server, read only."""
