"""What is inside a decoder and how to read and write it; knows nothing of editing."""

from nse_plugin.model.torchvision_operators import make_torchvision_importable

make_torchvision_importable()  # before the modules of this folder import transformers
