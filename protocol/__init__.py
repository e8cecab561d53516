"""The rules of Mini DFS: pure state and decisions, no sockets, files, clock, threads or global randomness."""
