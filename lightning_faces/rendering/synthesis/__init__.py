"""Synthetic photographs of faces with exact targets, from seeds: no photograph of a face and no trained weight goes in.

``options`` says what they may look like, ``person`` and ``situation`` draw a ``scene`` from its seeds, ``mesh`` builds
what is drawn, ``painting`` colours its pixels, ``photograph`` adds what a camera does, ``synthesizer`` puts all of it
together and gives the targets.
"""

from lightning_faces.rendering.synthesis.options import SynthesisOptions
from lightning_faces.rendering.synthesis.scene import Scene
from lightning_faces.rendering.synthesis.synthesizer import (
    EXTRA_TARGETS,
    PLAIN_TARGETS,
    SYNTHESIS_VERSION,
    FaceSynthesizer,
)

__all__ = ["EXTRA_TARGETS", "PLAIN_TARGETS", "SYNTHESIS_VERSION", "FaceSynthesizer", "Scene", "SynthesisOptions"]
