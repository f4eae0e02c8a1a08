"""The exceptions automc raises.

AutomcError
├── BudgetError      a budget that cannot be read or cannot be met
├── PolicyError      a policy that does not fit the model, or cannot be read
├── GraphError       a model automc cannot follow or will not touch
├── SpaceError       a search space that cannot be read, or does not fit the model
├── TaskError        a task that lacks something, or cannot be found
├── StudyError       a record that cannot be opened, or belongs to another model
├── ArtifactError    a saved model that cannot be written, read or trusted
├── ExecutorError    workers that cannot be started, or cannot be had
└── RegistryError    a name nobody registered

Each message is one sentence in three parts: what must hold, what was given, what to do next.
The command line prints it as it stands and exits with status 2.
"""


class AutomcError(Exception):
    """The root of every error automc raises on purpose."""


class BudgetError(AutomcError):
    """A budget that cannot be read or cannot be met."""


class PolicyError(AutomcError):
    """A policy that does not fit the model, or cannot be read."""


class GraphError(AutomcError):
    """A model automc cannot follow or will not touch."""


class SpaceError(AutomcError):
    """A search space that cannot be read, or does not fit the model."""


class TaskError(AutomcError):
    """A task that lacks something, or cannot be found."""


class StudyError(AutomcError):
    """A record that cannot be opened, or belongs to another model."""


class ArtifactError(AutomcError):
    """A saved model that cannot be written, read or trusted."""


class ExecutorError(AutomcError):
    """Workers that cannot be started, or cannot be had."""


class RegistryError(AutomcError):
    """A name nobody registered."""


def told(error: BaseException) -> str:
    """Any exception in one line; automc's own sentences stand for themselves, others need their type beside them."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # what a user's exception says of itself is code as well
        said = ""
    if isinstance(error, AutomcError) and said:
        return said
    return f"{type(error).__name__}: {said}"[:300] if said else type(error).__name__
