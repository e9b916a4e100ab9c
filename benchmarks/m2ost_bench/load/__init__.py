"""A deployment under load: what it can serve, where queues begin, and what is left of it under more than it can."""
