"""The commands of ``lightning-faces``, one file each, with a function of the arguments after the command's name."""
