"""Schedules: add, list, pause, run now, and the scheduler that fires them."""
