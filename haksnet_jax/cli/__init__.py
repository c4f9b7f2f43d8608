"""The program `haksnet`: a thin file for each command."""
