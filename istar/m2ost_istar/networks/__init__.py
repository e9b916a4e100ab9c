"""Other systems that M2OST is compared with, built from their papers."""
