"""Training of M2OST: configuration, augmentation, the loop, and the state it resumes from."""
