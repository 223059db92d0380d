"""Under which headings and keys listings name their images."""

URI_COLUMNS = (
    "uri",
    "url",
    "path",
    "file_name",
    "filename",
    "image_uri",
    "image_url",
    "image_path",
    "image",
    "file",
)
"""The column or key that holds the names, the first of these that is there."""
