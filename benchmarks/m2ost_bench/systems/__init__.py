"""Systems of the article, trained and judged by one hand."""
