"""Export the edits of a session, and import them.

- :func:`to_peft`, :func:`from_peft`: a LoRA adapter that ``PeftModel.from_pretrained`` loads;
- :func:`to_delta`, :func:`from_delta`: only the changed matrices, bit for bit;
- :func:`to_full`: a folder that ``AutoModelForCausalLM.from_pretrained`` loads.
"""

from nse_plugin.export.adapter import from_peft, to_peft
from nse_plugin.export.delta import from_delta, to_delta
from nse_plugin.export.factors import Fit
from nse_plugin.export.full import to_full

__all__ = ["Fit", "from_delta", "from_peft", "to_delta", "to_full", "to_peft"]
