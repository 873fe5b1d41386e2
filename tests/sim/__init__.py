"""The deterministic simulator: the applier's real code in a world played from a seed."""
