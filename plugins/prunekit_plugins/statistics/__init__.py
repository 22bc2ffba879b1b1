"""Statistics of the loss at fixed weights."""

from prunekit import Estimator, hookimpl
from prunekit_plugins.statistics.curvature_factors import CurvatureFactors
from prunekit_plugins.statistics.curvature_weights import CurvatureWeights
from prunekit_plugins.statistics.empirical_fisher_diagonal import EmpiricalFisherDiagonal
from prunekit_plugins.statistics.ggn_diagonal import GGNDiagonal
from prunekit_plugins.statistics.ggn_mc_diagonal import GGNMonteCarloDiagonal
from prunekit_plugins.statistics.gradient import Gradient
from prunekit_plugins.statistics.hessian_diagonal import HessianDiagonal
from prunekit_plugins.statistics.hessian_gradient import HessianGradient
from prunekit_plugins.statistics.hutchinson_diagonal import HutchinsonDiagonal
from prunekit_plugins.statistics.input_gram import InputGram
from prunekit_plugins.statistics.input_second_moment import InputSecondMoment
from prunekit_plugins.statistics.inverse_block import InverseBlock
from prunekit_plugins.statistics.inverse_full import InverseFull
from prunekit_plugins.statistics.inverse_kfac import InverseKroneckerFactored
from prunekit_plugins.statistics.inverse_layer import InverseLayer
from prunekit_plugins.statistics.inverse_products import InverseProducts
from prunekit_plugins.statistics.inverse_rows import InverseRows
from prunekit_plugins.statistics.synaptic_flow import SynapticFlow
from prunekit_plugins.statistics.uniform import Uniform


@hookimpl
def prunekit_register_statistics() -> list[type[Estimator]]:
    """Return the classes of the built-in statistics, to be registered when plugins are loaded."""
    return [
        Gradient,
        GGNDiagonal,
        GGNMonteCarloDiagonal,
        EmpiricalFisherDiagonal,
        HessianDiagonal,
        HutchinsonDiagonal,
        InverseFull,
        InverseRows,
        InverseBlock,
        CurvatureFactors,
        InverseLayer,
        InverseKroneckerFactored,
        InverseProducts,
        HessianGradient,
        CurvatureWeights,
        SynapticFlow,
        InputSecondMoment,
        InputGram,
        Uniform,
    ]
