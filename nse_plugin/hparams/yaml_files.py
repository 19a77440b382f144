"""Reading YAML: by path, or by the name of a file that ships with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from nse_plugin.errors import HparamsError, did_you_mean


class _Loader(yaml.SafeLoader):
    """YAML in which ``2e-2`` is a number and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(  # YAML 1.1 wants a dot before the exponent
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parse a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML; the message is one line.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: nothing but plain values
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise yaml.YAMLError(f"{error.problem}{where}") from error
    except yaml.YAMLError as error:  # such as a character that YAML does not allow
        raise yaml.YAMLError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except ValueError as error:  # such as a date in month 13
        raise yaml.YAMLError(str(error)) from error


def yaml_dir() -> Path:
    """The folder of the YAMLs that ship with the package, also in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "yamls"
    return installed if installed.is_dir() else package.parent / "hparams"


def find_yaml(name_or_path: str) -> Path:
    """The file of a path or of a shipped name such as ``NSE/gpt2-xl``.

    Raises:
        HparamsError: neither exists; the message suggests similar names.
    """
    with_suffix = (
        name_or_path if name_or_path.endswith((".yaml", ".yml")) else f"{name_or_path}.yaml"
    )
    for path in (Path(name_or_path), Path(with_suffix), yaml_dir() / with_suffix):
        if path.is_file():
            return path
    shipped = [
        path.relative_to(yaml_dir()).with_suffix("").as_posix()
        for path in sorted(yaml_dir().rglob("*.yaml"))
    ]
    raise HparamsError(
        f"no hparams file {name_or_path!r}{did_you_mean(name_or_path, shipped, most=3)}; give the "
        f"path of a YAML, or the name of one of the {len(shipped)} in {yaml_dir()}; for a model "
        "without a YAML, --method and --model (in Python hparams_for) give general settings"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        HparamsError: it cannot be read, or holds something else.
    """
    try:
        config = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise HparamsError(f"there is no file {str(path)!r}; give the path of a YAML") from error
    except (OSError, UnicodeDecodeError) as error:
        raise HparamsError(f"cannot read {path} ({error}); give the path of a YAML") from error
    except yaml.YAMLError as error:
        raise HparamsError(f"{path} is not YAML: {error}; correct it") from error
    if not isinstance(config, dict):
        what = "nothing" if config is None else type(config).__name__
        raise HparamsError(f"{path} holds {what}, not keys with values")
    return config
