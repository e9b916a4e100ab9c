"""Templates of the models that a slide-level release has beside, or in place of, those of every release."""
