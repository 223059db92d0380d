"""URI_COLUMNS: the headings and keys under which listings name their images."""

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
"""The column or key with the names is the first of these that a listing has."""
