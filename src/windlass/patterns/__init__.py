"""Patterns: structure in numbers. Representatives and groups, missing cells, parts, programs that compute the same.

Every estimator keeps scikit-learn's contract without importing it. Rooms, in the order data passes them:

- `estimator`: parameters, checked input, tags; the base of all.
- `dissimilarity`, `swaps`, `medoid_start`, `kmedoids`, `sampled_kmedoids`, `choose_k`: k objects that stand for all.
- `gaussians`, `partition`: groups whose number is found.
- `observed`, `factors`, `completion`: the missing cells of a table.
- `truncated_em`, `sparse_coding`, `occlusion`: the parts that data is made of.
- `functional_hash`, `cell_probe`, `equivalence_cache`: what a candidate computes, and its fitness if that is known.
- `search_space`, `evolution`: searches that use them.
"""

from windlass.patterns.choose_k import choose_k
from windlass.patterns.completion import MatrixCompletion
from windlass.patterns.equivalence_cache import EquivalenceCache
from windlass.patterns.evolution import RandomSearch, RegularizedEvolution, SearchBudget
from windlass.patterns.functional_hash import CallableProbe, FunctionalHasher
from windlass.patterns.kmedoids import KMedoids
from windlass.patterns.occlusion import MaximalCauses
from windlass.patterns.partition import ProbabilisticPartition
from windlass.patterns.sampled_kmedoids import SampledKMedoids
from windlass.patterns.sparse_coding import (
    BinarySparseCoding,
    DiscreteSparseCoding,
    SpikeSlabSparseCoding,
    TernarySparseCoding,
)

__all__ = [
    "BinarySparseCoding",
    "CallableProbe",
    "DiscreteSparseCoding",
    "EquivalenceCache",
    "FunctionalHasher",
    "KMedoids",
    "MatrixCompletion",
    "MaximalCauses",
    "ProbabilisticPartition",
    "RandomSearch",
    "RegularizedEvolution",
    "SampledKMedoids",
    "SearchBudget",
    "SpikeSlabSparseCoding",
    "TernarySparseCoding",
    "choose_k",
]
