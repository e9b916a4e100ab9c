"""The gate against getting slower."""
