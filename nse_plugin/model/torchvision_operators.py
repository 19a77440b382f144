"""Make transformers importable if torchvision's compiled operators do not load."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys

log = logging.getLogger(__name__)


def make_torchvision_importable() -> None:
    """Declare the missing operators if ``import torchvision`` fails without them.

    Wheels of torchvision do not load their compiled operators beside a torch built without CUDA
    (pytorch/vision issue 9085).  Transformers and EasyEdit import an installed torchvision whether
    they use it or not, so this has to run first: ``nse_plugin.model`` calls it on import.  The
    declared operators have no implementation, so text editing works and multimodal editing fails
    with an error.  With matching builds nothing is done.  This can go when EasyEdit no longer needs
    torchvision.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
        return
    except Exception as error:
        if not (isinstance(error, RuntimeError) and "torchvision::" in str(error)):
            log.warning("torchvision, which transformers imports, fails: %s", error)
            return
    import torch

    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    vision = importlib.import_module("torchvision")
    vision._nse_plugin_operators = operators  # type: ignore[attr-defined]  # keeps them alive
    log.warning(
        "torchvision's compiled operators do not load beside this torch; they were declared "
        "without implementation, so that transformers and EasyEdit can be imported. Multimodal "
        "models will not work until torch and torchvision are of one build"
    )
