"""Recipe 1 as a Flower app: what the server does, and what a client does. `recipes` must be importable."""
