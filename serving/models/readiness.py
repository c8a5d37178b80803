"""Decides whether a server is ready, from the models that it knows. Independent of how they are loaded."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from serving.models.versions import Model

_MAX_PROBLEMS = 5  # in one message


@dataclass(frozen=True, slots=True)
class Readiness:
    """The models that must be able to answer, besides those that have served."""

    required: tuple[str, ...] = ()
    is_strict: bool = False  # all known models, as in Triton

    def problem(
        self, models: Mapping[str, Model], *, unloaded: Collection[str], loading: Collection[str]
    ) -> str:
        """Return why the server is not ready; nothing if it is.

        A server without models is ready; one that can serve none of its models is not.

        Args:
            models: all known models.
            unloaded: models that were unloaded on request: they count only if they are required.
            loading: models of which a version is loading.
        """
        loaded = [model for name, model in models.items() if name not in unloaded]
        served = [model for model in loaded if model.default is not None]
        counted = {each.name for each in (loaded if self.is_strict or not served else served)}
        counted.update(self.required)
        failing = [model for name, model in models.items() if name in counted and not model.ready]
        missing = [name for name in self.required if name not in models]
        problems = [*_describe_missing(missing, loading), *map(_describe, failing)]
        more = len(problems) - _MAX_PROBLEMS
        return "; ".join(problems[:_MAX_PROBLEMS]) + (f"; and {more} more models" if more > 0 else "")


def _describe_missing(names: Collection[str], loading: Collection[str]) -> Iterator[str]:
    for name in names:
        yield f"the required model {name!r} is " + ("loading" if name in loading else "not in the repository")


def _describe(model: Model) -> str:
    return f"model {model.name!r} cannot answer: {model.why_not_ready}"
