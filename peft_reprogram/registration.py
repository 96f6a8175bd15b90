"""Adding a tuner type to PEFT: a member of the closed `PeftType` enum and an entry in PEFT's registry.

Nothing else in this package knows how PEFT keeps its types.
"""

from __future__ import annotations

from peft.config import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method


_OWNER = __name__.partition(".")[0]


def register_tuner(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> PeftType:
    """
    Make PEFT know a tuner type, so that `get_peft_model`, `PeftConfig.from_pretrained` and
    `PeftModel.from_pretrained` find it.

    Registering a second time (double import, `importlib.reload`) replaces the classes of the first time, which are
    stale by then.

    Args:
        name (`str`): Upper-case name of the type as it appears as `peft_type` in `adapter_config.json`.
        config_cls (`type`): The `PeftConfig` subclass.
        model_cls (`type`): The `BaseTuner` subclass; its `prefix` starts the name of every adapter parameter. Types that
            share one prefix can read each other's weight files.

    Returns:
        `PeftType`: The enum member.

    Raises:
        ImportError: If PEFT itself or another package has taken the name.
    """
    if name not in PeftType.__members__:
        _add_member(name)
    member = PeftType[name]

    registered = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if registered is not None:
        owner = registered.__module__.partition(".")[0]
        if owner != _OWNER:
            raise ImportError(
                f"The PEFT type {name} is already registered by the package '{owner}' "
                f"({registered.__module__}.{registered.__qualname__}), so {_OWNER} cannot register its own. Use only one "
                f"of the two in a process: import {_OWNER} without '{owner}', or install a version of '{owner}' that "
                "does not define this type."
            )
        for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
            mapping.pop(member, None)
    register_peft_method(name=name.lower(), config_cls=config_cls, model_cls=model_cls, prefix=model_cls.prefix)
    return member


def _add_member(name: str) -> None:
    # The enum machinery offers no extension point; this is what EnumType does for each member while it builds the class.
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # Where later releases of Python 3.12 and 3.13 look for `value in PeftType`.
    getattr(PeftType, "_hashable_values_", []).append(name)
    type.__setattr__(PeftType, name, member)
