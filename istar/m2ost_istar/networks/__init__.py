"""HIPT's two networks and iStar's head in PyTorch, built from their papers."""
