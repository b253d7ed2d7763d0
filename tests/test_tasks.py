"Tasks hold the information that they say."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from vdistill import tasks as T
from vdistill.core import InputError, generator

fuzz = settings(derandomize=True, deadline=None, max_examples=40)


@fuzz
@given(st.floats(0, 12), st.integers(1, 30))
def test_a_correlation_holds_the_information_asked_for(information, dim):
    rho = T.correlation_for(information, dim)
    assert 0 <= rho < 1 and -dim/2*math.log1p(-rho**2) == pytest.approx(information, rel=1e-6, abs=1e-9)


def test_gaussians_have_the_covariance_that_they_claim():
    task = T.correlated_gaussian(3., 2)
    x, y = task.sample(200_000)
    covariance = np.cov(torch.cat([x, y], 1).T.double())
    sign = np.linalg.slogdet
    by_determinants = .5*(sign(covariance[:2, :2])[1] + sign(covariance[2:, 2:])[1] - sign(covariance)[1])
    assert by_determinants == pytest.approx(3., abs=.02) and task.mutual_information == 3.
    torch.testing.assert_close(T.correlated_gaussian(3., 2, cubic=True).draw(9, generator("a"))[1], task.draw(9, generator("a"))[1]**3)


def test_student_t_is_scipys():
    for dim, dof, information in ((1, 3., .4), (2, 5., 0.), (2, 4., 1.)):
        task, rho = T.student_t(information, dim, dof), T.correlation_for(information, dim)
        shape = np.block([[np.eye(dim), rho*np.eye(dim)], [rho*np.eye(dim), np.eye(dim)]])
        both, one = stats.multivariate_t(np.zeros(2*dim), shape, df=dof), stats.multivariate_t(np.zeros(dim), np.eye(dim), df=dof)
        assert task.mutual_information == pytest.approx(2*one.entropy() - both.entropy(), abs=1e-9)
        x, y = (v.double().numpy() for v in task.sample(100_000))
        ratio = both.logpdf(np.concatenate([x, y], 1)) - one.logpdf(x) - one.logpdf(y)
        assert ratio.mean() == pytest.approx(task.mutual_information, abs=5*ratio.std()/len(ratio)**.5)


def test_bijections_can_be_undone():
    base = T.correlated_gaussian(1., 4)
    (x, y), (wound, same), (_, tamed) = (t.sample(500) if t is base else t.draw(500, generator("task", base.name, seed=0)) for t in (base, T.spiral(base), T.asinh(base)))
    assert torch.equal(y, same) and not torch.allclose(x, wound)
    torch.testing.assert_close(tamed.sinh(), y)
    torch.testing.assert_close((wound**2).sum(1), (x**2).sum(1))                    # turned, not stretched
    assert T.spiral(base).mutual_information == T.asinh(base).mutual_information == 1.
    with pytest.raises(InputError, match="even"): T.spiral(T.correlated_gaussian(1., 3)).sample(5)


@pytest.mark.parametrize("width, low, high", [(.05, -.05, 1.05), (.5, -.5, 1.5), (2., -2., 3.)])
def test_additive_noise_by_quadrature(width, low, high):
    y = np.linspace(low, high, 400_001)
    p = (np.minimum(1, y + width) - np.maximum(0, y - width)).clip(min=0)/(2*width)
    entropy = np.trapezoid(np.where(p > 0, -p*np.log(np.maximum(p, 1e-300)), 0), y)
    assert T.additive_noise(width).mutual_information == pytest.approx(entropy - math.log(2*width), abs=1e-4)
    x, y = T.additive_noise(width).sample(1000)
    assert (y - x).abs().max() <= width + 1e-6 and 0 <= x.min() and x.max() <= 1


def test_mixtures_and_tables():
    far, near = T.mixture(3, 40.), T.mixture(3, 0.)
    assert far.mutual_information == pytest.approx(math.log(3), abs=1e-4) and near.mutual_information == pytest.approx(0, abs=1e-6) and far.error < 1e-6
    joint = np.array([[.4, .1, .1], [.05, .3, .05]])
    task = T.discrete(joint)
    x, y = task.sample(100_000)
    assert abs((x.T @ y/len(x)).numpy() - joint).max() < .01
    q = joint.sum(0)*joint.sum(1, keepdims=True)
    assert task.mutual_information == pytest.approx((joint*np.log(joint/q)).sum())


def test_samples_follow_their_seed():
    for task in (T.correlated_gaussian(1., 3), T.student_t(.3, 2), T.additive_noise(), T.mixture(), T.discrete([[.5, 0], [0, .5]]), T.spiral(T.correlated_gaussian(1., 2))):
        (a, b), (c, d), (e, f) = task.sample(50, seed=1), task.sample(50, seed=1), task.sample(50, seed=2)
        assert torch.equal(a, c) and torch.equal(b, d) and not (torch.equal(a, e) and torch.equal(b, f))


def test_a_stream_of_students_does_not_repeat_itself():
    g, task = generator("stream"), T.student_t(0., 1)
    (a, _), (b, _) = task.draw(5, g), task.draw(5, g)
    lengths = [T.student_t(0., 1, dof=1.).draw(4, generator("s", k))[0].abs().sum().item() for k in range(3)]
    assert not torch.equal(a, b) and len(set(lengths)) == 3
    x = T.correlated_gaussian(10., 1)
    u, v = x.sample(1000)
    assert not torch.equal(u, v) and (u - v).std() == pytest.approx(math.exp(-10.), rel=.2)
    with pytest.raises(InputError, match="float32"): T.correlated_gaussian(20., 1)
