import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks
from amends.curate._detectors import *
from amends.curate._robust import RobustClassifier


@pytest.mark.filterwarnings("default")
@parametrize_with_checks(
    [
        SimiFeat(),
        SimiFeat("vote"),
        DeepKNN(),
        ConfidentLearning(),
        Cleanlab(),
        CORES(),
        RobustClassifier(random_state=0, epochs=30),
    ]
)
def test_est(estimator, check):
    check(estimator)
