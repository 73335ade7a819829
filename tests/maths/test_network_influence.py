import numpy as np
import pytest
import torch
from torch import nn

from amends.maths.disparity import disparity
from amends.maths.influence import LinearModel, NotSolved, from_sklearn
from amends.maths.network_influence import NetworkModel, cosine, last_layer

N, D, PENALTY = 80, 3, 0.02
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=DRAW, dtype=torch.float64)
Y = (X[:, 0] + X[:, 1] ** 2 + torch.randn(N, generator=DRAW, dtype=torch.float64) > 0.7).long()
GROUP = (X[:, 0] > 0).long()
GAP = disparity(GROUP.numpy())


def network(num_logits=1, hidden=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, hidden), nn.Tanh(), nn.Linear(hidden, num_logits)).double().eval()


def trained(module, x=X, y=Y, weight=None, penalty=PENALTY):
    """Train to the minimum, written out apart from what is tested."""
    weight = torch.ones(len(x), dtype=torch.float64) if weight is None else weight
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def objective():
        optimizer.zero_grad()
        logit = module(x)
        if logit.shape[1] == 1:
            loss = nn.functional.binary_cross_entropy_with_logits(logit[:, 0], y.double(), reduction="none")
        else:
            loss = nn.functional.cross_entropy(logit, y, reduction="none")
        value = (weight * loss).sum() / N + penalty / 2 * sum((p**2).sum() for p in module.parameters())
        value.backward()
        return value

    optimizer.step(objective)
    return module


def gap(module):
    return GAP.loss(NetworkModel(module).predict(X).numpy(), "absolute")


def steepest(model):
    return model.pull_back(X, GAP.gradient(model.predict(X).numpy(), "absolute"))


@pytest.mark.parametrize("num_logits", [1, 3])
def test_gradients_and_curvature_are_those_of_autograd(num_logits):
    model = NetworkModel(network(num_logits), 0.3, batch_rows=7)
    y = Y if num_logits == 1 else torch.arange(N) % 3
    weight = model.weights()

    def objective(w):
        return model._losses(w, X, y).mean() + 0.15 * (w**2).sum()

    hessian = torch.autograd.functional.hessian(objective, weight)
    direction = torch.randn(len(weight), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(model.gradient(X, y), torch.autograd.functional.jacobian(objective, weight))
    torch.testing.assert_close(model.curvature_times(X, y, direction, "hessian"), hessian @ direction)
    rows = torch.autograd.functional.jacobian(lambda w: model._losses(w, X, y), weight)
    torch.testing.assert_close(model.along(X, y, direction), rows @ direction)
    slope = torch.randn(N, num_logits, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_hand = torch.autograd.functional.jacobian(lambda w: (slope * model._probability(w, X)).sum(), weight)
    torch.testing.assert_close(model.pull_back(X, slope), by_hand)


def test_the_two_curvatures_are_one_where_the_network_is_linear():
    linear = nn.Sequential(nn.Linear(D, 3)).double().eval()
    model, y = NetworkModel(linear, 0.1), torch.arange(N) % 3
    direction = torch.randn(len(model.weights()), generator=DRAW, dtype=torch.float64)
    both = [model.curvature_times(X, y, direction, kind) for kind in ("hessian", "gauss-newton")]
    torch.testing.assert_close(*both)


def test_a_network_of_one_layer_is_the_linear_model():
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1 / (0.1 * N), tol=1e-10, max_iter=10_000).fit(X.numpy(), Y.numpy())
    linear = nn.Sequential(nn.Linear(D, 1)).double().eval()
    with torch.no_grad():
        linear[0].weight.copy_(torch.tensor(fitted.coef_))
        linear[0].bias.copy_(torch.tensor(fitted.intercept_))
    model, twin = NetworkModel(linear, 0.1, decay_bias=False), from_sklearn(fitted, N)
    solved = model.solve(X, Y, steepest(model), curvature="hessian", tolerance=1e-12)
    x = twin.features(X.numpy())
    direction = twin.model.pull_back(x, GAP.gradient(twin.model.predict(x), "absolute"))
    expected = twin.model.along(
        x, twin.model.residual(x, twin.targets(Y.numpy())), twin.model.solve(x, direction, twin.penalty)
    )
    np.testing.assert_allclose(model.replace(X, Y, solved).numpy(), expected / N, rtol=1e-6)
    features, head = last_layer(linear, X)
    np.testing.assert_allclose(features, x)
    np.testing.assert_allclose(head.weight_KE, twin.model.weight_KE)


@pytest.mark.parametrize("kind", ["removal", "label", "features"])
def test_what_is_predicted_of_a_trained_network_comes_true_in_refits(kind):
    module = trained(network())
    model = NetworkModel(module, PENALTY)
    assert model.gradient(X, Y).abs().max() < 1e-7
    put_x = X + 0.5 if kind == "features" else None
    put_y = 1 - Y if kind == "label" else None
    solved = model.solve(X, Y, steepest(model), curvature="hessian", tolerance=1e-10)
    predicted = model.replace(X, Y, solved, put_x, put_y).numpy()
    actual = []
    chosen = range(0, N, 4)
    for i in chosen:
        weight = torch.ones(N + 1, dtype=torch.float64)
        weight[i] = 0
        weight[N] = float(kind != "removal")
        x = torch.cat([X, (X if put_x is None else put_x)[[i]]])
        y = torch.cat([Y, (Y if put_y is None else put_y)[[i]]])
        refit = network()
        refit.load_state_dict(module.state_dict())
        actual.append(gap(trained(refit, x, y, weight)) - gap(module))
    assert cosine(predicted[chosen], actual) > 0.97
    cheap = model.replace(X, Y, model.solve(X, Y, steepest(model), curvature="identity"), put_x, put_y).numpy()
    assert cosine(cheap[chosen], actual) < cosine(predicted[chosen], actual)


def test_the_last_layer_is_a_linear_model_that_predicts_its_own_refits():
    """Of three classes; what stands before the last layer stays as it is."""
    y = torch.arange(N) % 3
    module = trained(network(3), y=y)
    features, head = last_layer(module, X)
    np.testing.assert_allclose(head.predict(features), NetworkModel(module).predict(X).numpy())
    assert isinstance(head, LinearModel) and head.loss == "softmax"
    scores = torch.tensor(features[:, :-1])
    top = nn.Sequential(nn.Linear(scores.shape[1], 3)).double().eval()
    trained(top, scores, y)
    model = NetworkModel(top, PENALTY)
    direction = model.pull_back(scores, GAP.gradient(model.predict(scores).numpy(), "absolute"))
    predicted = model.replace(scores, y, model.solve(scores, y, direction, tolerance=1e-10)).numpy()
    actual = []
    for i in range(10):
        refit = nn.Sequential(nn.Linear(scores.shape[1], 3)).double().eval()
        refit.load_state_dict(top.state_dict())
        trained(refit, scores, y, (torch.arange(N) != i).double())
        parts = [GAP.loss(NetworkModel(of).predict(scores).numpy(), "absolute") for of in (refit, top)]
        actual.append(parts[0] - parts[1])
    assert cosine(predicted[:10], actual) > 0.99


def test_networks_that_cannot_be_judged_are_refused():
    with pytest.raises(ValueError, match="eval"):
        NetworkModel(network().train())
    with pytest.raises(ValueError, match="no linear layer"):
        last_layer(nn.Sequential(nn.Tanh()).eval(), X)
    with pytest.raises(ValueError, match="does not make its output"):
        last_layer(nn.Sequential(nn.Linear(D, 1), nn.Tanh()).double().eval(), X)
    with pytest.raises(ValueError, match="not all 0"):
        cosine([0.0, 0.0], [1.0, 2.0])
    raw = NetworkModel(network(seed=3))
    with pytest.raises(NotSolved, match="no minimum"):
        raw.solve(X, 1 - Y, steepest(raw), curvature="hessian")
