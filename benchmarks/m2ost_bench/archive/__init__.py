"""What an archive costs beside its slides, and whether very many leave anything behind."""
