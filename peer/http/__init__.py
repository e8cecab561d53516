"""HTTP: the server, the routes and what they say."""
