"""A hypothesis state machine over everything a source may have and do, against real servers of every version."""
