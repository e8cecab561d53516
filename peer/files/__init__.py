"""What is done with a file: uploads, downloads, lists, deletes."""
