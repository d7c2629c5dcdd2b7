"""What avatars are drawn from: the classes, the factors given the class, and causes that are conjunctions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stylex.data.faces import BACKGROUND, FACTORS, STANDARD_VALUES, check_values
from stylex.errors import DataError

_MAX_TRIES = 10_000


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Factor(_Model):
    """How one factor is drawn: from `values` whatever the class, or from `given[class]`.

    In YAML a distribution is a mapping value → probability (they sum to 1), or a list of values that are
    equally likely.
    """

    values: dict[str, float] | None = None
    given: dict[str, dict[str, float]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and set(raw) == {"given"} and isinstance(raw["given"], dict):
            return {"given": {label: _uniform(d) for label, d in raw["given"].items()}}
        if isinstance(raw, dict) and isinstance(raw.get("values"), dict):
            return raw
        return {"values": _uniform(raw)}

    @model_validator(mode="after")
    def _sums_to_one(self) -> Factor:
        for distribution in (self.given or {}).values() if self.values is None else (self.values,):
            _check_distribution(distribution)
        return self

    def distribution(self, label: str) -> dict[str, float]:
        """Value → probability, given the class `label`."""
        if self.values is not None:
            return self.values
        assert self.given is not None
        return self.given[label]


class Combination(_Model):
    """A cause that is a conjunction: with probability `given[class]` all of `all` holds.

    Otherwise each is drawn from its own distribution under `factors`, except that they do not all take those
    values at once; so `given[class]` is exactly the share of faces of that class in which all hold.
    """

    all: dict[str, str] = Field(min_length=2)
    given: dict[str, float]

    @field_validator("given")
    @classmethod
    def _probabilities(cls, given: dict[str, float]) -> dict[str, float]:
        for label, p in given.items():
            if not 0 <= p <= 1:
                raise ValueError(f"the probability for {label!r} is {p}, outside 0 to 1")
        return given


class AvatarSpec(_Model):
    """What `render_avatars` draws from: classes with their shares, factors given the class, combinations.

    Factors that are left out are independent of the class and uniform over `STANDARD_VALUES`.
    """

    classes: dict[str, float]
    factors: dict[str, Factor] = Field(default_factory=dict)  # all of FACTORS once validated
    combinations: tuple[Combination, ...] = ()
    background: str = Field(default=BACKGROUND, pattern=r"^#[0-9a-fA-F]{6}$")

    @field_validator("classes", mode="before")
    @classmethod
    def _classes(cls, raw: Any) -> Any:
        classes = _uniform(raw)
        if isinstance(classes, dict):
            for name in classes:
                if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set('/\\:"'):
                    raise ValueError(f"{name!r} cannot be the name of a class (and of its folder)")
        return classes

    @model_validator(mode="after")
    def _consistent(self) -> AvatarSpec:
        if len(self.classes) < 2:
            raise ValueError("at least two classes are needed")
        _check_distribution(self.classes)
        unknown = sorted(set(self.factors) - set(FACTORS))
        if unknown:
            raise ValueError(f"no factor is called {', '.join(unknown)}; there are {', '.join(FACTORS)}")
        for name in FACTORS:
            if name not in self.factors:
                self.factors[name] = Factor.model_validate(list(STANDARD_VALUES[name]))
            given = self.factors[name].given
            if given is not None and set(given) != set(self.classes):
                raise ValueError(f"{name}: `given` must name each class once: {', '.join(self.classes)}")
        used: set[str] = set()
        for combination in self.combinations:
            self._check_combination(combination)
            if used & set(combination.all):
                raise ValueError(f"{', '.join(sorted(used & set(combination.all)))}: in two combinations")
            used |= set(combination.all)
        return self

    def _check_combination(self, combination: Combination) -> None:
        unknown = sorted(set(combination.all) - set(FACTORS))
        if unknown:
            raise ValueError(f"combinations: no factor is called {', '.join(unknown)}")
        if set(combination.given) != set(self.classes):
            raise ValueError(f"combinations: `given` must name each class once: {', '.join(self.classes)}")
        for label in self.classes:
            if combination.given[label] < 1 and self._all_hold(combination, label) > 0.99:
                raise ValueError(
                    f"combinations: {combination.all} always holds for {label!r} by the factors themselves; "
                    "give these factors other values under `factors` too"
                )

    @classmethod
    def load(cls, path: str | Path) -> AvatarSpec:
        """Read a YAML file.

        Raises:
            DataError: the file cannot be read, has an unknown key, or says something impossible.
        """
        try:
            raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
        return cls.parse(raw, where=str(path))

    @classmethod
    def parse(cls, raw: Any, *, where: str = "avatar spec") -> AvatarSpec:
        """Check `raw` (as YAML gives it), and that every value can be drawn; DataError names `where`."""
        try:
            spec = cls.model_validate(raw)
        except ValidationError as error:
            raise DataError(f"{where}: {_first_problem(error)}") from error
        for name, factor in spec.factors.items():
            for label in spec.classes:
                check_values(name, factor.distribution(label))
        for combination in spec.combinations:
            for name, value in combination.all.items():
                check_values(name, (value,))
        return spec

    @classmethod
    def default(cls) -> AvatarSpec:
        """The spec "does this face look old?": grey hair, glasses, and the absence of a smile."""
        text = resources.files("stylex.data").joinpath("avatars_age.yaml").read_text(encoding="utf-8")
        return cls.parse(yaml.safe_load(text), where="avatars_age.yaml")

    def to_yaml(self) -> str:
        """The whole spec, defaults filled in, as `load` reads it."""
        factors = {
            n: f.values if f.values is not None else {"given": f.given} for n, f in self.factors.items()
        }
        ordered: dict[str, Any] = {"classes": self.classes, "factors": {n: factors[n] for n in FACTORS}}
        if self.combinations:
            ordered["combinations"] = [c.model_dump() for c in self.combinations]
        text: str = yaml.safe_dump(ordered | {"background": self.background}, sort_keys=False)
        return text

    def probability(self, factor: str, value: str, label: str) -> float:
        """P(factor = value | class = label), combinations included."""
        own = self.factors[factor].distribution(label).get(value, 0.0)
        for combination in self.combinations:
            if factor in combination.all:
                p, together = combination.given[label], self._all_hold(combination, label)
                planted = combination.all[factor] == value
                rest = (own - together if planted else own) / (1 - together) if p < 1 else 0.0
                return p * planted + (1 - p) * rest
        return own

    def draw(self, seed: int, index: int) -> tuple[str, dict[str, str]]:
        """Class and factors of face number `index`: a function of (spec, seed, index) alone."""
        uniform = partial(_uniform_number, seed, index)
        label = _pick(self.classes, uniform("class"))
        face = {n: _pick(self.factors[n].distribution(label), uniform(n)) for n in FACTORS}
        for number, combination in enumerate(self.combinations):
            if uniform(f"combination {number}") < combination.given[label]:
                face.update(combination.all)
                continue
            tries = 0
            while all(face[name] == value for name, value in combination.all.items()):
                tries += 1
                assert tries < _MAX_TRIES  # _check_combination keeps the share of such draws under 0.99
                for name in combination.all:
                    face[name] = _pick(self.factors[name].distribution(label), uniform(f"{name} {tries}"))
        return label, face

    def _all_hold(self, combination: Combination, label: str) -> float:
        together = 1.0
        for name, value in combination.all.items():
            together *= self.factors[name].distribution(label).get(value, 0.0)
        return together


def _uniform_number(seed: int, index: int, name: str) -> float:
    """A number in [0, 1) that is the same on every machine and with every version of numpy."""
    digest = hashlib.sha256(f"{seed}/{index}/{name}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _pick(distribution: Mapping[str, float], u: float) -> str:
    values = [value for value, p in distribution.items() if p > 0]
    total = 0.0
    for value in values:
        total += distribution[value]
        if u < total:
            return value
    return values[-1]


def _uniform(raw: Any) -> Any:
    if isinstance(raw, list) and raw:
        if len({str(value) for value in raw}) != len(raw):
            raise ValueError(f"a value appears twice in {raw}")
        return {value: 1 / len(raw) for value in raw}
    if not isinstance(raw, dict):
        raise ValueError(f"{raw!r} is neither a mapping value: probability nor a list of values")
    return raw


def _check_distribution(distribution: Mapping[str, float]) -> None:
    if any(p < 0 for p in distribution.values()):
        raise ValueError(f"a probability is negative in {dict(distribution)}")
    if not abs(sum(distribution.values()) - 1) <= 1e-6:  # a NaN must not pass
        raise ValueError(
            f"probabilities sum to {sum(distribution.values()):g}, not to 1: {dict(distribution)}"
        )


def _first_problem(error: ValidationError) -> str:
    """One line out of pydantic's report: where, and what."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    return f"{place}: {message}" if place else message
