"""How fast spots are cut out of a slide, against the ways in which others do it: ``make bench-tiler``."""
