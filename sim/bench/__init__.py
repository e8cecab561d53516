"""`sim bench`: how fast a cluster is, beside others on the same machine in the same run."""
