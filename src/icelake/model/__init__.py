"""What the words mean: positions, relations, markers, cuts, load state. No I/O; standard library only."""
