import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from amends.fair import ConceptInfluence


@pytest.mark.filterwarnings("ignore")  # the checks' data have no groups, and the estimator says so
@parametrize_with_checks(
    [
        ConceptInfluence(),
        ConceptInfluence(RidgeClassifier(), num_bootstrap=0),
        ConceptInfluence(LogisticRegression(), newton=False),
    ]
)
def test_the_estimator_keeps_to_the_rules_of_scikit_learn(estimator, check):
    check(estimator)
