"""What runs without being asked: repairs, and comparing catalogs with a random peer."""
