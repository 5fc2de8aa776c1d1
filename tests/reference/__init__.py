"""The components as plain loops, one module per paper, written from the equations and importing nothing of vireid."""
