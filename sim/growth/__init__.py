"""`sim growth`: measures local clusters of very many files."""
