"""The demo: a shop that keeps trading, mirrored, asked and proven while it trades."""
