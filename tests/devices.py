"""Where models of tests are: the CPU, and a GPU, which is pretended where there is none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch

from tests.pretend import GPU, PretendedGPU


class Place(NamedTuple):
    """Where a test's models are, and in which type of number."""

    name: str
    dtype: torch.dtype

    def put(self, model: Any) -> Any:
        """A model there."""
        return model.to(self.name, self.dtype)

    def there(self) -> AbstractContextManager[Any]:
        """Inside, this place exists."""
        return PretendedGPU() if self == PRETENDED else nullcontext()


CPU, PRETENDED = Place("cpu", torch.float32), Place(str(GPU), torch.bfloat16)
PLACES = [pytest.param(CPU, id="cpu")]
if torch.cuda.is_available():
    PLACES += [
        pytest.param(Place("cuda", dtype), id=f"cuda-{dtype}", marks=pytest.mark.cuda)
        for dtype in (torch.float32, torch.bfloat16)
    ]
else:
    PLACES.append(pytest.param(PRETENDED, id="pretended-bfloat16"))


def place_of(request: pytest.FixtureRequest) -> Place:
    """The place of the test that asks for a model: the CPU if it does not name ``device``."""
    return request.getfixturevalue("device") if "device" in request.fixturenames else CPU
