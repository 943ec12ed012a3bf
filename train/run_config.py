"""A training run's configuration: a preset, a file and `key=value` texts, each over the last.

A file has a section for each field of `TrainConfig`; `preset = "NAME"` at its top is where it
starts from. A file with a model's settings alone, such as a NAME.config.json, is a [model] section.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from packer.train.config import ConfigError, check_setting, read_file, settings_of
from packer.train.presets import DEFAULT, PRESETS
from packer.train.settings import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECTIONS: dict[str, type[Any]] = get_type_hints(TrainConfig)
FIELDS = {
    section: {field.name: field for field in dataclasses.fields(kind)}
    for section, kind in SECTIONS.items()
}
Settings = dict[str, dict[str, Any]]


def read_run(source: str | None, changes: Iterable[str] = ()) -> TrainConfig:
    """The run that a preset's name or a file describes, with `changes` made to it.

    source: None is the demo preset. changes: `section.key=value`, or `key=value` where only one
    section has such a key; values as in TOML, or plain text.
    Raises ConfigError: no such preset or file, unknown keys with the nearest valid one, values of
    another type, or settings that cannot be.
    """
    settings = _source_settings(DEFAULT if source is None else source)
    for change in changes:
        section, key, value = _parse_change(change)
        settings[section][key] = check_setting(FIELDS[section], key, value, f"--set {change}")
    return run_from(settings, source or DEFAULT)


def run_from(settings: Mapping[str, Mapping[str, Any]], source: str) -> TrainConfig:
    """The run from checked settings by section; `run_settings` is its inverse.

    Raises ConfigError: settings that cannot be, by section and name.
    """
    sections: dict[str, Any] = {}
    for section, values in settings.items():
        try:
            sections[section] = SECTIONS[section](**values)
        except ValueError as error:
            raise ConfigError(f"{source}: [{section}] {error}") from error
    try:
        return TrainConfig(**sections)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def run_settings(config: TrainConfig) -> Settings:
    """All settings by section, as JSON and TOML can hold them."""
    return {section: settings_of(getattr(config, section)) for section in SECTIONS}


def _values(config: TrainConfig) -> Settings:
    """All settings by section as they are."""
    return {section: dict(vars(getattr(config, section))) for section in SECTIONS}


def _source_settings(source: str) -> Settings:
    if source in PRESETS:
        return _values(PRESETS[source])
    if not Path(source).is_file():
        near = difflib.get_close_matches(source, PRESETS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{source} is neither a file nor a preset; presets are {', '.join(PRESETS)}, the "
            f"nearest is {near!r}"
        )
    value = read_file(source)
    if value and set(value) <= set(FIELDS["model"]):
        value = {"model": value}
    preset = value.pop("preset", DEFAULT)
    if preset not in PRESETS:
        raise ConfigError(f"{source}: preset = {preset!r} is none of {', '.join(PRESETS)}")
    base = _values(PRESETS[preset])
    if _describes_whole_model(value.get("model")):
        base["model"] = {}
    return _overlaid(base, value, source)


def _describes_whole_model(section: Any) -> bool:
    """Whether the section sets all required fields, and so replaces the preset's model."""
    required = {n for n, f in FIELDS["model"].items() if f.default is dataclasses.MISSING}
    return isinstance(section, Mapping) and required <= set(section)


def _overlaid(base: Settings, value: Mapping[str, Any], source: str) -> Settings:
    for section, values in value.items():
        if section not in SECTIONS:
            near = difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{source}: there is no section [{section}]; the nearest is [{near}]")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: {section} must be a section of settings, [{section}]")
        for key, setting in values.items():
            base[section][key] = check_setting(
                FIELDS[section], key, setting, f"{source}: [{section}]"
            )
    return base


def _parse_change(change: str) -> tuple[str, str, Any]:
    name, equals, text = change.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {change}: write KEY=VALUE, such as schedule.iterations=500")
    section, dot, key = name.strip().rpartition(".")
    if not dot:
        section = _only_section(key, change)
    elif section not in SECTIONS:
        near = difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"--set {change}: there is no section {section!r}; nearest is {near!r}")
    return section, key, _parse_value(text.strip())


def _only_section(key: str, change: str) -> str:
    having = [section for section, fields in FIELDS.items() if key in fields]
    if len(having) == 1:
        return having[0]
    if having:
        spelled = " or ".join(f"{section}.{key}" for section in having)
        raise ConfigError(f"--set {change}: say which: {spelled}")
    every = [name for fields in FIELDS.values() for name in fields]
    near = difflib.get_close_matches(key, every, n=1, cutoff=0.0)[0]
    raise ConfigError(f"--set {change}: there is no setting {key!r}; the nearest is {near!r}")


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
