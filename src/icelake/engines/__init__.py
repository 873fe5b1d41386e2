"""Engines that answer SQL over the lake's tables, one file each."""
