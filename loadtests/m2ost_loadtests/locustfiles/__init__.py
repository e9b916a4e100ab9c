"""What `locust -f` loads; in a folder of its own, which Locust puts first on the import path."""
