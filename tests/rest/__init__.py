"""The catalog over HTTP, asked by what engines ask with: every test talks to ``icelake catalog serve`` in a process of its own."""
