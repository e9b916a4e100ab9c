"""A tritonserver of one's own: started, watched, begun anew, and examined before it is."""
