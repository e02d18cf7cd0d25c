"""Text from a teacher behind an API: asked once, journalled before it is parsed, under a hard cap, then selected."""
