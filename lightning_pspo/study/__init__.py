"""Studies: arms, axes and seeds of runs, their execution and their analysis. Imports no torch."""
