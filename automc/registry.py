"""Names to implementations: one table of strings a kind, resolved on first use.

A new criterion, cost, agent, search space, searcher, callback or file format is one new file and one line here (or one
call of `Registry.add` from a plug-in). Strings keep importing automc cheap, as Gymnasium's registry does.
"""

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from automc.errors import RegistryError
from automc.visible import brief


@dataclass(frozen=True, slots=True)
class Registry:
    """A table of names, each pointing at `"module:object"`."""

    kind: str
    table: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, target: str) -> None:
        """Registers `name` for `target`, written `"module:object"`; a taken name raises RegistryError."""
        if name in self.table and self.table[name] != target:
            raise RegistryError(
                f"A {self.kind} name must be new; {name!r} already means {self.table[name]}: choose another."
            )
        self.table[name] = target

    def load(self, name: str) -> Any:
        """Returns the object registered under `name`; an unknown name raises RegistryError with a suggestion."""
        self.check(name)
        module, _, attribute = self.table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def check(self, name: str) -> None:
        """Raises RegistryError, with the nearest known name, unless `name` is registered."""
        if name in self.table:
            return
        near = difflib.get_close_matches(name, self.table, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(self.table))}."
        raise RegistryError(f"A {self.kind} must be registered; {brief(name)} is not: {hint}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __contains__(self, name: object) -> bool:
        return name in self.table


COSTS = Registry(
    "cost",
    {
        "macs": "automc.costs.macs:MACS",
        "params": "automc.costs.params:PARAMS",
        "size": "automc.costs.size:SIZE",
        "bops": "automc.costs.bops:BOPS",
    },
)

CRITERIA = Registry(
    "criterion",
    {
        "l1": "automc.criteria.magnitude:L1",
        "l2": "automc.criteria.magnitude:L2",
        "lamp": "automc.criteria.magnitude:LAMP",
        "probabilistic": "automc.criteria.magnitude:PROBABILISTIC",
        "random": "automc.criteria.magnitude:RANDOM",
        "bn_scale": "automc.criteria.magnitude:BN_SCALE",
        "fpgm": "automc.criteria.geometry:FPGM",
        "activation": "automc.criteria.activation:ACTIVATION",
        "mean_activation": "automc.criteria.activation:MEAN_ACTIVATION",
        "apoz": "automc.criteria.activation:APOZ",
        "obd": "automc.criteria.curvature:OBD",
        "obs": "automc.criteria.curvature:OBS",
        "sparsegpt": "automc.criteria.curvature:SPARSEGPT",
        "taylor": "automc.criteria.gradient:TAYLOR",
        "snip": "automc.criteria.gradient:SNIP",
        "grasp": "automc.criteria.gradient:GRASP",
        "synflow": "automc.criteria.gradient:SYNFLOW",
        "sensitivity": "automc.criteria.gradient:SENSITIVITY",
        "kron_obd": "automc.criteria.kron:KRON_OBD",
        "kron_obs": "automc.criteria.kron:KRON_OBS",
    },
)

SPACES = Registry(
    "search space",
    {
        "channels": "automc.search_spaces.channels:channels",
        "channels-all": "automc.search_spaces.channels:all_channels",
        "criteria": "automc.search_spaces.criteria:criteria",
        "bits": "automc.search_spaces.bits:bits",
        "weight-bits": "automc.search_spaces.bits:weight_bits",
        "codebooks": "automc.search_spaces.bits:shared_bits",
        "depth": "automc.search_spaces.depth:depth",
        "depth-channels": "automc.search_spaces.depth:depth_and_channels",
        "ranks": "automc.search_spaces.ranks:ranks",
        "ranks-svd": "automc.search_spaces.ranks:svd",
        "ranks-spatial": "automc.search_spaces.ranks:spatial",
        "ranks-eigendamage": "automc.search_spaces.ranks:eigendamage",
        "ranks-tucker2": "automc.search_spaces.ranks:tucker",
        "sparsity": "automc.search_spaces.weights:sparsity",
        "weights": "automc.search_spaces.weights:weights",
        "n:m": "automc.search_spaces.weights:semi_structured",
        "channels-ranks": "automc.search_spaces.joint:channels_ranks",
        "channels-bits": "automc.search_spaces.joint:channels_bits",
        "channels-bops": "automc.search_spaces.joint:channels_bops",
        "zeros-bits": "automc.search_spaces.joint:zeros_bits",
        "joint": "automc.search_spaces.joint:joint",
        "amc": "automc.search_spaces.files:amc",
        "haq": "automc.search_spaces.files:haq",
        "haq-kmeans": "automc.search_spaces.files:haq-kmeans",
        "int8": "automc.search_spaces.files:int8",
        "mixed": "automc.search_spaces.files:mixed",
        "sparse-tensor-cores": "automc.search_spaces.files:sparse-tensor-cores",
        "cpu-blocks": "automc.search_spaces.files:cpu-blocks",
        "cpu-int8-blocks": "automc.search_spaces.files:cpu-int8-blocks",
        "halves": "automc.search_spaces.files:halves",
        "deep-compression": "automc.search_spaces.files:deep-compression",
    },
)

SPACE_FILES = Registry(
    "space file",
    {
        ".yaml": "automc.search_spaces.files:read",
        ".yml": "automc.search_spaces.files:read",
    },
)

SEARCHERS = Registry(
    "searcher",
    {
        "random": "automc.searchers.baselines:random_searcher",
        "uniform": "automc.searchers.baselines:uniform_searcher",
        "global": "automc.searchers.global_ranking:global_ranking",
        "global_magnitude": "automc.searchers.global_ranking:global_magnitude",
        "tpe": "automc.searchers.optuna_search:tpe",
        "gp": "automc.searchers.optuna_search:gp",
        "cmaes": "automc.searchers.optuna_search:cmaes",
        "nsga2": "automc.searchers.optuna_search:nsga2",
        "nsga3": "automc.searchers.optuna_search:nsga3",
        "evolution": "automc.searchers.evolution:evolution",
        "dp": "automc.searchers.dp:dp",
        "knapsack": "automc.searchers.knapsack:knapsack",
        "amc": "automc.searchers.published:amc",
        "amc-guaranteed": "automc.searchers.published:amc_guaranteed",
        "amc-budgets": "automc.searchers.rl:amc_budgets",
        "haq": "automc.searchers.published:haq",
        "ddpg": "automc.searchers.rl:ddpg",
        "reinforce": "automc.searchers.rl:reinforce",
        "td3": "automc.searchers.rl:td3",
        "sac": "automc.searchers.rl:sac",
        "ppo": "automc.searchers.rl:ppo",
        "joint": "automc.searchers.joint:joint",
    },
)

AGENTS = Registry(
    "agent",
    {
        "ddpg": "automc.agents.ddpg:DDPGAgent",
        "reinforce": "automc.agents.reinforce:ReinforceAgent",
        "td3": "automc.agents.sb3:td3",
        "sac": "automc.agents.sb3:sac",
        "ppo": "automc.agents.sb3:ppo",
        "random": "automc.agents.random_agent:RandomAgent",
    },
)

TASKS = Registry(
    "task",
    {
        "digits": "automc.tasks.digits:digits",
        "mnist-lenet300": "automc.tasks.mnist:mnist_lenet300",
        "mnist-lenet5": "automc.tasks.mnist:mnist_lenet5",
        "cifar10-resnet20": "automc.tasks.cifar10:resnet20",
        "cifar10-resnet56": "automc.tasks.cifar10:resnet56",
    },
)

EXECUTORS = Registry(
    "executor",
    {
        "processes": "automc.executors.processes:processes",
        "ray": "automc.executors.ray:on_ray",
    },
)

CALLBACKS = Registry(
    "callback",
    {
        "events": "automc.callbacks.events:Events",
        "tensorboard": "automc.callbacks.tensorboard:TensorBoard",
        "mlflow": "automc.callbacks.mlflow:MLflow",
    },
)

FORMATS = Registry(
    "format",
    {
        "pt2": "automc.leaving.pt2:PT2",
        "onnx": "automc.leaving.onnx:ONNX",
    },
)
