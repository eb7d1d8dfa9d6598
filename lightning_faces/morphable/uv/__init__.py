"""Maps in UV space."""
