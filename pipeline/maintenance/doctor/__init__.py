"""`htc doctor`: examine the files of an output, and repair what can be derived again."""
