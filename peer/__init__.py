"""The shell of Mini DFS: carries the rules out over sockets, files and SQLite, on trio."""
