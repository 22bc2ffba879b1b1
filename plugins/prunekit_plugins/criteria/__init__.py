"""Pruning criteria: formulas from weights and statistics to saliencies."""

from prunekit import Criterion, hookimpl
from prunekit_plugins.criteria.alps import ALPS
from prunekit_plugins.criteria.combinatorial import Combinatorial
from prunekit_plugins.criteria.empirical_fisher import EmpiricalFisher
from prunekit_plugins.criteria.grasp import GraSP
from prunekit_plugins.criteria.lm import LinearModel
from prunekit_plugins.criteria.magnitude import Magnitude
from prunekit_plugins.criteria.oba import OptimalBrainApoptosis
from prunekit_plugins.criteria.obc import ExactOBS
from prunekit_plugins.criteria.obd import OptimalBrainDamage
from prunekit_plugins.criteria.obs import OptimalBrainSurgeon
from prunekit_plugins.criteria.obs_block import BlockSurgeon
from prunekit_plugins.criteria.obs_gradient import GradientSurgeon
from prunekit_plugins.criteria.obs_kfac import KroneckerSurgeon
from prunekit_plugins.criteria.obs_rows import RowSurgeon
from prunekit_plugins.criteria.qm import QuadraticModel
from prunekit_plugins.criteria.random import Random
from prunekit_plugins.criteria.snip import SNIP
from prunekit_plugins.criteria.sparsegpt import SparseGPT
from prunekit_plugins.criteria.synflow import SynFlow
from prunekit_plugins.criteria.taylor_fo import TaylorFirstOrder
from prunekit_plugins.criteria.taylor_so import TaylorSecondOrder
from prunekit_plugins.criteria.wanda import Wanda


@hookimpl
def prunekit_register_criteria() -> list[type[Criterion]]:
    """Return the classes of the built-in criteria, to be registered when plugins are loaded."""
    return [
        Magnitude,
        LinearModel,
        QuadraticModel,
        OptimalBrainDamage,
        OptimalBrainSurgeon,
        GradientSurgeon,
        RowSurgeon,
        BlockSurgeon,
        Combinatorial,
        ExactOBS,
        SparseGPT,
        ALPS,
        KroneckerSurgeon,
        EmpiricalFisher,
        TaylorFirstOrder,
        TaylorSecondOrder,
        SNIP,
        GraSP,
        SynFlow,
        OptimalBrainApoptosis,
        Wanda,
        Random,
    ]
