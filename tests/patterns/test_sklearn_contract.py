"""scikit-learn's own checks, where it is installed."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

import windlass.patterns
from windlass.patterns.completion import MatrixCompletion
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

QUICK = {"n_components": 3, "max_iter": 5}
ESTIMATORS = [
    KMedoids(n_clusters=3),
    SampledKMedoids(n_clusters=3),
    MatrixCompletion(),
    ProbabilisticPartition(),
    BinarySparseCoding(**QUICK),
    TernarySparseCoding(**QUICK),
    DiscreteSparseCoding(**QUICK),
    SpikeSlabSparseCoding(**QUICK),
    MaximalCauses(**QUICK),
]

DRAWN = "the start is drawn from the rows: with copies of rows instead of weights another start is drawn"
EXPECTED = {
    "KMedoids": {"check_sample_weight_equivalence_on_dense_data": DRAWN},
    "SampledKMedoids": {"check_sample_weight_equivalence_on_dense_data": DRAWN},
}


def test_no_estimator_imports_scikit_learn():
    script = (
        "import sys, windlass.patterns as p; "
        "[getattr(p, name)() for name in p.__all__ if hasattr(getattr(p, name), 'get_params')]; "
        "print([name for name in sys.modules if name.split('.')[0] in ('sklearn', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_public_estimator_is_checked():
    public = {getattr(windlass.patterns, name) for name in windlass.patterns.__all__}
    estimators = {each for each in public if isinstance(each, type) and hasattr(each, "get_params")}
    assert estimators == {type(each) for each in ESTIMATORS}


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_the_contract(estimator):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    expected = EXPECTED.get(type(estimator).__name__, {})
    results = checks.check_estimator(estimator, expected_failed_checks=expected, on_fail=None, on_skip=None)
    failed = [f"{each['check_name']}: {each['exception']!r}" for each in results if each["status"] == "failed"]
    assert not failed, "\n".join(failed)
    passed = {each["check_name"] for each in results if each["status"] == "passed"}
    assert len(passed) > 30
    assert not passed & set(expected), "a check that is listed as failing passes"


def test_in_a_pipeline_and_in_a_search():
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    points = rng.standard_normal((90, 3)) + 9 * rng.integers(0, 3, (90, 1))
    pipeline = make_pipeline(StandardScaler(), KMedoids(3, n_init=5))
    labels = pipeline.fit_predict(points)
    assert len(set(labels)) == 3
    assert (clone(pipeline).fit(points).predict(points) == labels).all()
    assert (pickle.loads(pickle.dumps(pipeline)).predict(points) == labels).all()
    search = GridSearchCV(KMedoids(), {"n_clusters": [1, 3]}, cv=3).fit(points)
    assert search.best_params_ == {"n_clusters": 3}
