"""Three methods of at most 60 lines each, of kinds that the platform is made for."""

from tests.methods.toys.cascade import Cascade

__all__ = ["Cascade"]
