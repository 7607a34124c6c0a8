"""Checks the boards against the types of Grafana's own JSON, as grafana-foundation-sdk has them.

The SDK reads JSON without complaint, so its annotations are walked here: a key that the schema does
not have, a value of another type and an unknown member of an enumeration are errors.
"""
import enum
import importlib
import json
import pathlib
import re
import sys
import types
import typing

from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common, dashboard, prometheus

NAMES = {"query_caching_ttl": "queryCachingTTL"}
TYPES = {Dataquery: prometheus.Dataquery}
CUSTOM = {"table": common.TableFieldOptions}


def json_name(attribute):
    attribute = attribute.removesuffix("_val")
    return NAMES.get(attribute) or re.sub(r"_(.)", lambda m: m.group(1).upper(), attribute)


def check(value, kind, where):
    """Yields what is wrong with `value`, which should be a `kind`."""
    kind = TYPES.get(kind, kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (object, typing.Any):
        return
    if origin in (typing.Union, types.UnionType):
        if dashboard.RowPanel in arguments:
            arguments = [dashboard.RowPanel if value.get("type") == "row" else dashboard.Panel]
        if value is None and type(None) in arguments:
            return
        found = [list(check(value, one, where)) for one in arguments if one is not type(None)]
        if all(found):
            # The alternative that fits best says most.
            yield from min(found, key=len)
    elif kind is type(None):
        if value is not None:
            yield f"{where}: wanted null"
    elif origin is typing.Literal:
        if value not in arguments:
            yield f"{where}: {value!r} is none of {arguments}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{where}: wanted a list"
            return
        for i, item in enumerate(value):
            yield from check(item, arguments[0], f"{where}[{i}]")
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"{where}: wanted an object"
            return
        for key, item in value.items():
            yield from check(item, arguments[1], f"{where}.{key}")
    elif issubclass(kind, enum.Enum):
        if value not in [member.value for member in kind]:
            yield f"{where}: {value!r} is no {kind.__name__}"
    elif kind is float:
        if type(value) not in (int, float):
            yield f"{where}: {value!r} is no number"
    elif kind in (str, int, bool):
        if type(value) is not kind:
            yield f"{where}: {value!r} is no {kind.__name__}"
    elif not isinstance(value, dict):
        yield f"{where}: wanted an object, {kind.__name__}"
    else:
        yield from check_object(value, kind, where)


def check_object(value, kind, where):
    known = {json_name(name): hint for name, hint in typing.get_type_hints(kind).items()}
    if kind is dashboard.Panel:
        module = importlib.import_module(f"grafana_foundation_sdk.models.{value['type'].replace('-', '')}")
        known["options"] = module.Options
        custom = value.get("fieldConfig", {}).get("defaults", {}).get("custom")
        if custom is not None:
            yield from check(custom, CUSTOM.get(value["type"]) or module.FieldConfig,
                             f"{where}.custom")
    for key, item in value.items():
        if key not in known:
            yield f"{where}.{key}: not in {kind.__name__}"
        else:
            yield from check(item, known[key], f"{where}.{key}")


def main():
    problems = []
    for path in map(pathlib.Path, sys.argv[1:]):
        board = json.loads(path.read_text())
        problems += list(check(board, dashboard.Dashboard, path.name))
        # And the SDK itself reads it.
        dashboard.Dashboard.from_json(board)
    print("\n".join(problems) or f"{len(sys.argv) - 1} boards fit the schema")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
