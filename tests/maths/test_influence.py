import numpy as np
import pytest
from scipy.optimize import minimize

from amends.maths.influence import LinearModel, NotSolved, with_intercept

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
