"""Which sagas this code knows. Filled at import by the modules that declare them, the same in every process."""

from difflib import get_close_matches
from typing import TypeVar

from actors.run.definition import Program
from events.errors import NotFoundError

P = TypeVar("P", bound=Program)

_programs: dict[str, dict[int, Program]] = {}


class UnknownSagaError(NotFoundError):
    """No saga of that name, or not in that version."""

    def __str__(self) -> str:
        name, _, version = self.name.partition("@")
        if name in _programs and version:
            known = ", ".join(map(str, sorted(_programs[name])))
            return f"saga {name!r} has no version {version} here; registered: {known}"
        close = get_close_matches(name, _programs, n=1)
        guess = f", did you mean {close[0]!r}?" if close else ""
        return f"no saga {name!r} is registered{guess} (TENANTRY_SAGAS names the modules that declare sagas)"


def register(program: P) -> P:
    """Make a saga known under its name and version. Raises ValueError where another has them already."""
    versions = _programs.setdefault(program.name, {})
    if versions.setdefault(program.version, program) is not program:
        raise ValueError(f"saga {program.name!r} version {program.version} is registered already")
    return program


def find(name: str, version: int = 0) -> Program:
    """That version, or with 0 the newest. Raises UnknownSagaError."""
    versions = _programs.get(name)
    if not versions or (version and version not in versions):
        raise UnknownSagaError("saga", f"{name}@{version}" if version else name)
    return versions[version or max(versions)]


def patch_of(name: str, version: int) -> Program | None:
    """The newest version that takes over runs of this one, if any does."""
    programs = _programs.get(name, {}).values()
    return max(
        (program for program in programs if version in program.patches and program.version > version),
        key=lambda program: program.version,
        default=None,
    )


def known() -> dict[str, tuple[int, ...]]:
    """Versions by name."""
    return {name: tuple(sorted(versions)) for name, versions in sorted(_programs.items())}
