"""Where accuracy went between the trained student and each engine."""
