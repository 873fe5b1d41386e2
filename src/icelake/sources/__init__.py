"""Where changes come from: one folder a kind of source, each an implementation of ``icelake.ports.Source``."""
