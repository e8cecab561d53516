"""What is on this disk: the database, all the SQL there is, chunks, and holding files."""
