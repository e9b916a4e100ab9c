"""M2OST beside iStar."""
