"""What the hyperparameters of all methods share: fields, checks, and reading of YAML."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from nse_plugin.errors import HparamsError, did_you_mean

H = TypeVar("H", bound="Hparams")


def bounded(default: Any, *, low: float | None = None, above: float | None = None,
             high: float | None = None) -> Any:  # fmt: skip
    """A field with bounds: ``low <= value <= high`` and ``above < value``."""
    return field(default=default, metadata={"low": low, "above": above, "high": high})


@dataclass(kw_only=True)
class Hparams:
    """What every method's hyperparameters share.

    Raises:
        HparamsError: a value has the wrong type or is out of range; the message names the key.
    """

    method: ClassVar[str] = ""
    """What ``alg_name`` has to be."""
    attaches: ClassVar[bool] = False
    """The method attaches modules to the model and leaves the weights as they are."""

    alg_name: str
    """Name of the method in the host's table; ``NAME-plugin`` where the host has its own NAME."""
    model_name: Any
    """Path or hub name of the model, ``atlas:gpt2``, or a ready (model, tokenizer)."""
    device: int | str = "cpu"
    """Where the model goes: ``cpu``, ``cuda:1``, or an int n for ``cuda:n``."""
    model_parallel: bool = False
    """Let accelerate spread the model over devices."""
    batch_size: int = bounded(1, low=1)
    """Requests per round in the host's ``batch_edit``."""
    max_length: int = bounded(40, low=1)
    """Longest text, in tokens, of the host's evaluator."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What the embedded host loads the model in; default float32."""
    fp16: bool = False
    """EasyEdit's switch for float16."""
    use_chat_template: bool = False
    """Put prompts through the tokenizer's chat template in the evaluation."""
    evaluation_type: str | None = None
    """EasyEdit's other evaluations, ``LLM-judge`` or ``generate-text``."""
    api_key: str | None = None
    """Key of EasyEdit's LLM judge; never written to a file."""
    seed: int = bounded(0, low=0)
    """Seed of what a method draws: context texts, dropout, the start of adapters and of values."""

    def __post_init__(self) -> None:
        if self.alg_name not in (self.method, f"{self.method}-plugin"):
            raise HparamsError(
                f"alg_name is {self.alg_name!r}, and {type(self).__name__} is for "
                f"{self.method!r}; read the file with the class of its method"
            )
        self._check_fields()

    @classmethod
    def from_hparams(cls: type[H], name_or_path: str | Path) -> H:
        """Read a YAML file by path, or by name among those that ship with the package.

        Raises:
            HparamsError: there is no such file, or what it holds is not right.
        """
        path = find_yaml(str(name_or_path))
        config = read_yaml(path)
        try:
            return cls.from_dict(config)
        except HparamsError as error:
            raise HparamsError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls: type[H], config: dict[str, Any]) -> H:
        """Build from a dict; an unknown key is an error that names the nearest valid one."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in config:
            if key not in fields:
                raise HparamsError(f"unknown key {key!r}{did_you_mean(key, fields)}")
        missing = [
            name
            for name, f in fields.items()
            if f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
            and name not in config
        ]
        if missing:
            raise HparamsError(f"missing key(s) {', '.join(map(repr, missing))}")
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """All values by key but secrets; a ready model is given by the name in its config."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["api_key"]
        if not isinstance(self.model_name, str):
            values["model_name"] = str(
                getattr(self.model_name[0].config, "_name_or_path", "") or "(ready model)"
            )
        return values

    def _check_fields(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = _coerce(f.name, getattr(self, f.name), hints[f.name])
            setattr(self, f.name, value)
            if value is not None and f.metadata:
                _check_range(f.name, value, **f.metadata)


@dataclass(kw_only=True)
class LayersHparams(Hparams):
    """What the methods share that write MLP down-projections."""

    layers: list[int]
    """Blocks whose MLP down-projection is edited, rising."""

    rewrite_module_tmp: str | None = None
    """Module templates, as EasyEdit's YAMLs have them; checked against the model when given."""
    layer_module_tmp: str | None = None
    mlp_module_tmp: str | None = None
    attn_module_tmp: str | None = None
    ln_f_module: str | None = None
    lm_head_module: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[0] < 0:
            raise HparamsError(
                f"layers is {self.layers!r}; give block numbers from 0 in rising order, "
                "each once, e.g. [13, 14, 15]"
            )


def yaml_dir() -> Path:
    """The folder of the YAMLs that ship with the package, also in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "yamls"
    return installed if installed.is_dir() else package.parent / "hparams"


def find_yaml(name_or_path: str) -> Path:
    """The file of a path or of a shipped name such as ``NSE/gpt2-xl``.

    Raises:
        HparamsError: neither exists; the message lists what would.
    """
    with_suffix = (
        name_or_path if name_or_path.endswith((".yaml", ".yml")) else f"{name_or_path}.yaml"
    )
    for path in (Path(name_or_path), Path(with_suffix), yaml_dir() / with_suffix):
        if path.is_file():
            return path
    shipped = sorted(
        str(path.relative_to(yaml_dir()).with_suffix("")) for path in yaml_dir().rglob("*.yaml")
    )
    raise HparamsError(
        f"no hparams file {name_or_path!r}{did_you_mean(name_or_path, shipped)}; "
        f"shipped are {', '.join(shipped)}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        HparamsError: it cannot be read, or holds something else.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise HparamsError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise HparamsError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise HparamsError(f"{path} holds {type(config).__name__}, not keys with values")
    return config


def read_method_yaml(name_or_path: str | Path) -> dict[str, Any]:
    """The keys of a method's YAML, by path or shipped name; ``alg_name`` is among them.

    Raises:
        HparamsError: there is no such file, or it is no method's.
    """
    path = find_yaml(str(name_or_path))
    config = read_yaml(path)
    if not isinstance(config.get("alg_name"), str):
        raise HparamsError(f"{path} has no alg_name; give a method's YAML, such as NSE/gpt2-xl")
    return config


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """The value in the type of its field; YAML 1.1 reads ``2e-2`` as a text."""
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return value
        near = did_you_mean(str(value), [str(c) for c in choices])
        raise HparamsError(f"{key} is {value!r}; it must be one of {choices}{near}")
    if origin in (typing.Union, types.UnionType):
        kinds = typing.get_args(hint)
        if value is None and type(None) in kinds:
            return None
        kinds = tuple(kind for kind in kinds if kind is not type(None))
        if len(kinds) > 1 and isinstance(value, kinds) and not isinstance(value, bool):
            return value
        return _coerce(key, value, kinds[0])
    if origin is list:
        (kind,) = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise HparamsError(f"{key} is {value!r}; it must be a list, e.g. [1, 2]")
        return [_coerce(key, item, kind) for item in value]
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise HparamsError(f"{key} is {value!r}; it must be of type {hint.__name__}")


def _check_range(
    key: str, value: Any, low: float | None, above: float | None, high: float | None
) -> None:
    if value != value or abs(value) == float("inf"):
        raise HparamsError(f"{key} is {value!r}; it must be a finite number")
    if low is not None and value < low:
        raise HparamsError(f"{key} is {value!r}; it must be at least {low}")
    if above is not None and value <= above:
        raise HparamsError(f"{key} is {value!r}; it must be greater than {above}")
    if high is not None and value > high:
        raise HparamsError(f"{key} is {value!r}; it must be at most {high}")
