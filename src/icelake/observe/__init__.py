"""What processes tell about themselves, the clock and chance they run by, and where they die on purpose in tests."""
