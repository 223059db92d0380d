"""The bundled weights; docs/models describes their training and their average precision."""
