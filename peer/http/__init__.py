"""The HTTP contract: the routes, what they take, and what they say."""
