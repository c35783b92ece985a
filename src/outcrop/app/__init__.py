"""The composition root: alone wires rooms together, opens the port and closes everything in order."""
