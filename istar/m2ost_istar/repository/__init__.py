"""Templates of iStar's served models. ``m2ost export-istar`` fits them to its networks and adds their graphs."""
