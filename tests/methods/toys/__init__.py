"""Three small methods of the kinds that the platform is made for, without a change to anything but themselves."""

from tests.methods.toys.cascade import Cascade
from tests.methods.toys.dense import DenseFaces
from tests.methods.toys.passes import Passes

__all__ = ["Cascade", "DenseFaces", "Passes"]
