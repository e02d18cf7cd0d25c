"""Models: loading, safety, heads, students, vocabularies."""
