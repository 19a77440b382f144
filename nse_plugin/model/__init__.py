"""The parts of a decoder and how to read, run and write them; independent of editing methods."""

from nse_plugin.model.torchvision_operators import make_torchvision_importable

make_torchvision_importable()  # before the modules of this folder import transformers
