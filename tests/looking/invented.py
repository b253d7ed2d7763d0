"Numbers for tests of this room."
import numpy as np


def people(n=40, each=6, d=10, seed=0):
    "Features that hold a person's code, and identities."
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(n), each)
    return rng.standard_normal((n, d))[identity] + .5*rng.standard_normal((n*each, d)), identity, rng


def noise(*shape, seed=0): return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
