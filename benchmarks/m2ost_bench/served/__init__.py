"""A served release: against bare inference, and its memory."""
