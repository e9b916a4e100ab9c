"""Templates of the served models. ``m2ost export`` fits them to a checkpoint and adds the engine."""
