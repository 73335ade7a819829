import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import (
    Lasso,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeClassifier,
)

from amends.maths.influence import LinearModel, Move, NotSolved, from_sklearn, newton, settle, with_intercept

rng = np.random.default_rng(0)
N, D = 80, 4
X = with_intercept(rng.normal(size=(N, D)))
LABEL = {"logistic": rng.integers(0, 2, N), "softmax": rng.integers(0, 3, N), "squared": rng.normal(size=N)}
SCORES = {"logistic": 1, "softmax": 3, "squared": 1}
LOSSES = list(SCORES)


def at(loss, seed=1):
    return LinearModel(np.random.default_rng(seed).normal(size=(SCORES[loss], D + 1)), loss)


def mean_loss(model, x=X, label=None):
    label = LABEL[model.loss] if label is None else label
    predicted = model.predict(x)
    if model.loss == "squared":
        return ((predicted[:, 0] - label) ** 2).mean() / 2
    both = np.column_stack([1 - predicted, predicted]) if model.loss == "logistic" else predicted
    return -np.log(both[np.arange(len(x)), label]).mean()


def moved(model, place, step):
    weight = model.weight_KE.copy()
    weight.flat[place] += step
    return LinearModel(weight, model.loss)


def slopes(function, model, step=1e-5):
    size = model.weight_KE.size
    ends = [(function(moved(model, i, step)) - function(moved(model, i, -step))) / (2 * step) for i in range(size)]
    return np.stack(ends, axis=-1)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_and_curvature_are_those_of_finite_differences(loss):
    model, target = at(loss), at(loss).targets(LABEL[loss])
    slope = model.gradient(X, model.residual(X, target))
    np.testing.assert_allclose(slope.ravel(), slopes(mean_loss, model), atol=1e-8)
    bend = slopes(lambda m: m.gradient(X, m.residual(X, target)).ravel(), model)
    np.testing.assert_allclose(model.hessian(X), bend, atol=1e-7)
    direction = rng.normal(size=model.weight_KE.shape)
    expected = model.hessian(X, 0.3) @ direction.ravel()
    np.testing.assert_allclose(model.hessian_times(X, direction, 0.3).ravel(), expected, atol=1e-12)
    steep = rng.normal(size=(N, SCORES[loss]))
    expected = slopes(lambda m: (steep * m.predict(X)).sum(), model)
    np.testing.assert_allclose(model.pull_back(X, steep).ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_product_with_a_direction_is_that_of_each_rows_own_gradient(loss):
    model, target = at(loss), at(loss).targets(LABEL[loss])
    direction = rng.normal(size=model.weight_KE.shape)
    found = model.along(X, model.residual(X, target), direction)
    for i in range(5):
        own = model.gradient(X[[i]], model.residual(X[[i]], target[[i]]))
        assert found[i] == pytest.approx((own * direction).sum(), abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_both_solvers_undo_the_hessian(loss, damping):
    model = at(loss)
    direction = model.pull_back(X, rng.normal(size=(N, SCORES[loss])))
    exact, near = (model.solve(X, direction, 0.01, damping=damping, solver=solver) for solver in ("exact", "cg"))
    added = damping * np.diag(model.hessian(X, 0.01)).mean()
    np.testing.assert_allclose(model.hessian_times(X, exact, 0.01) + added * exact, direction, atol=1e-8)
    change = [model.along(X, model.residual(X, model.targets(LABEL[loss])), found) for found in (exact, near)]
    np.testing.assert_allclose(*change, atol=1e-6)


def test_what_conjugate_gradients_cannot_solve_is_said():
    model = LinearModel(np.zeros((1, 3)), "squared")
    flat = np.array([[1.0, 0, 0], [2.0, 0, 0]])
    with pytest.raises(NotSolved, match="damping"):
        model.solve(flat, np.array([[0.0, 1.0, 0.0]]), solver="cg")


@pytest.mark.parametrize("loss", LOSSES)
def test_leaving_a_row_out_moves_the_weights_as_foreseen(loss):
    """Against a refit without the row, to first order in 1 / N."""
    penalty = 0.1
    shape = at(loss).weight_KE.shape

    def fit(weight_N):
        def objective(flat):
            model = LinearModel(flat.reshape(shape), loss)
            residual = model.residual(X, model.targets(LABEL[loss])) * weight_N[:, None]
            value = sum(w * mean_loss(model, X[[i]], LABEL[loss][[i]]) for i, w in enumerate(weight_N)) / N
            value += penalty / 2 * (model.weight_KE[:, :-1] ** 2).sum()
            slope = residual.T @ X / N
            slope[:, :-1] += penalty * model.weight_KE[:, :-1]
            return value, slope.ravel()

        found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="BFGS", options={"gtol": 1e-9})
        return LinearModel(found.x.reshape(shape), loss)

    model = fit(np.ones(N))
    row = int(np.abs(model.residual(X, model.targets(LABEL[loss]))).sum(axis=1).argmax())
    without = fit(np.arange(N) != row)
    own = model.gradient(X[[row]], model.residual(X[[row]], model.targets(LABEL[loss][[row]])))
    foreseen, seen = model.solve(X, own, penalty) / N, without.weight_KE - model.weight_KE
    assert np.linalg.norm(foreseen - seen) < 0.15 * np.linalg.norm(seen)


# One Newton step ------------------------------------------------------------------------------------------------------

FEATURES = X[:, :-1]
MODELS = {
    "ridge": (Ridge(alpha=3.0), "squared"),
    "ridge without intercept": (Ridge(alpha=3.0, fit_intercept=False), "squared"),
    "least squares": (LinearRegression(), "squared"),
    "ridge classifier": (RidgeClassifier(alpha=2.0), "logistic"),
    "ridge classifier of three": (RidgeClassifier(alpha=2.0), "softmax"),
    "logistic": (LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000), "logistic"),
    "logistic without penalty": (LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000), "logistic"),
    "logistic, weighted": (LogisticRegression(class_weight={0: 3, 1: 1}, tol=1e-10, max_iter=10_000), "logistic"),
    "softmax": (LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000), "softmax"),
}
EXACT = [name for name, (estimator, _) in MODELS.items() if "Logistic" not in type(estimator).__name__]


def weights_of(name, label):
    return np.where(label == 0, 3.0, 1.0) if name == "logistic, weighted" else np.ones(N)


def fitted(name):
    estimator, kind = MODELS[name]
    label = LABEL[kind]
    found = from_sklearn(estimator.fit(FEATURES, label), N)
    return found, label, found.features(FEATURES), weights_of(name, label)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_scikit_learn_stands_where_the_objective_is_flat(name):
    """Weights, penalty and targets are right only if the gradient with the penalty is 0."""
    found, label, x, weight = fitted(name)
    slope = found.model.gradient(x, weight[:, None] * found.model.residual(x, found.targets(label)))
    slope[:, :-1] += found.penalty * found.model.weight_KE[:, :-1]
    assert np.abs(slope).max() < 1e-6


def refit_weights(name, x_ND, label, weight=None):
    estimator = MODELS[name][0].fit(x_ND, label, sample_weight=weight)
    ends = np.broadcast_to(estimator.intercept_, len(np.atleast_2d(estimator.coef_)))
    return np.column_stack([np.atleast_2d(estimator.coef_), ends])


def foreseen_weights(model, moves, pushed, inverse, row):
    moved = sum(np.outer(q[row], move.x_NE[row]).ravel() for q, move in zip(pushed, moves, strict=True))
    return (inverse @ moved).reshape(model.weight_KE.shape) / N


@pytest.mark.parametrize("name", MODELS)
def test_one_newton_step_without_a_row_is_nearer_to_the_refit_than_first_order(name):
    """Exactly the refit under the squared loss."""
    found, label, x, weight = fitted(name)
    model = found.model
    moves = [Move(x, model.residual(x, found.targets(label)), weight)]
    inverse = model.inverse(x, found.penalty, weight_N=weight)
    off = {}
    for kind, solved in {"first order": None, "newton": inverse}.items():
        pushed, errors, sizes = newton(model, moves, solved, N), [], []
        for row in range(15):
            kept = np.arange(N) != row
            seen = refit_weights(name, FEATURES[kept], label[kept]) - model.weight_KE
            errors.append(np.linalg.norm(foreseen_weights(model, moves, pushed, inverse, row) - seen))
            sizes.append(np.linalg.norm(seen))
        off[kind] = np.sum(errors) / np.sum(sizes)
    assert off["first order"] > 0.02
    assert off["newton"] < (1e-8 if name in EXACT else off["first order"] / 2)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_called_a_newton_step_is_one_on_the_changed_objective(name):
    """A row leaves, and two others come in with half its weight each: gradient and curvature of that, solved anew."""
    found, label, x, weight = fitted(name)
    model, row = found.model, 3
    target = found.targets(label)
    moves = [Move(x, model.residual(x, target), weight)]
    for _ in range(2):
        new = found.features(2 * rng.normal(size=(N, D)))
        moves.append(Move(new, model.residual(new, target), -weight / 2))
    inverse = model.inverse(x, found.penalty, weight_N=weight)
    step = foreseen_weights(model, moves, newton(model, moves, inverse, N), inverse, row)
    x_new = np.vstack([x, *(move.x_NE[[row]] for move in moves[1:])])
    weight_new = np.concatenate([weight, [weight[row] / 2] * 2])
    weight_new[row] = 0
    residual = model.residual(x_new, np.vstack([target, target[[row]], target[[row]]]))
    slope = (weight_new[:, None] * residual).T @ x_new / N
    slope[:, :-1] += found.penalty * model.weight_KE[:, :-1]
    share = weight_new * len(x_new) / N  # the Hessian divides by the rows it is given
    by_hand = -model.solve(x_new, slope, found.penalty, weight_N=share)
    np.testing.assert_allclose(step, by_hand, atol=1e-5 * np.abs(by_hand).max())
    if name in EXACT:
        seen = refit_weights(name, x_new[:, :-1], np.concatenate([label, label[[row, row]]]), weight_new)
        np.testing.assert_allclose(step, seen - model.weight_KE, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_settles_without_a_few_rows_is_the_refit(name):
    found, label, x, weight = fitted(name)
    inverse = found.model.inverse(x, found.penalty, weight_N=weight)
    kept = np.arange(N) >= 3
    moved = settle(found.model, x, found.targets(label), inverse, found.penalty, weight_N=weight * kept)
    seen = refit_weights(name, FEATURES[kept], label[kept])
    np.testing.assert_allclose(moved.weight_KE, seen, atol=1e-6)
    with pytest.raises(NotSolved, match="Refit"):
        settle(found.model, x, found.targets(label), 5 * inverse, found.penalty, weight_N=weight * kept)


def test_a_row_that_is_replaced_by_itself_changes_nothing():
    found, label, x, weight = fitted("softmax")
    residual = found.model.residual(x, found.targets(label))
    pushed = newton(
        found.model, [Move(x, residual, weight), Move(x, residual, -weight)], found.model.inverse(x, found.penalty), N
    )
    np.testing.assert_allclose(pushed[0] + pushed[1], 0, atol=1e-12)


def test_the_cheap_solver_takes_the_direction_as_it_is():
    direction = rng.normal(size=(1, D + 1))
    assert (at("logistic").solve(X, direction, 0.1, solver="identity") == direction).all()


def test_models_whose_objective_is_another_are_refused():
    label = LABEL["logistic"]
    with pytest.raises(ValueError, match="liblinear"):
        from_sklearn(LogisticRegression(solver="liblinear").fit(FEATURES, label), N)
    with pytest.raises(ValueError, match="L1"):
        from_sklearn(LogisticRegression(l1_ratio=0.5, solver="saga", max_iter=10_000).fit(FEATURES, label), N)
    with pytest.raises(ValueError, match="Lasso"):
        from_sklearn(Lasso().fit(FEATURES, label), N)
    with pytest.raises(ValueError, match="no fitted"):
        from_sklearn(LogisticRegression(), N)
    with pytest.raises(ValueError, match="one alpha"):
        from_sklearn(Ridge(alpha=[1.0, 2.0]).fit(FEATURES, np.column_stack([label, 1 - label])), N)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_penalty_found_by_cross_validation_is_taken():
    model = LogisticRegressionCV(Cs=[0.1, 0.2], cv=2, use_legacy_attributes=False).fit(FEATURES, LABEL["logistic"])
    assert from_sklearn(model, N).penalty == pytest.approx(1 / (model.C_ * N))
