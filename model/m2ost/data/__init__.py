"""Data sets of spatial transcriptomics, in their owners' layouts, as sections of one type."""
