"""Whole outputs: survey, compaction, removal, publications, doctor."""
