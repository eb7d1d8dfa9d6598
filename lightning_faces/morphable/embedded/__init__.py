"""How the embedded face model was made; ``python -m lightning_faces.morphable.embedded`` makes it again."""
