"Batches over uneven sets: length, pairing, repeats, reproducibility."
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from vdistill.reid.batches import IdentitySampler, choose, given_labels, images_by_identity, load_batch
from vdistill.core import InputError, generator
from vdistill.reid.augmentation import random_flip
from vdistill.reid.records import ReIDDataset

fuzz = settings(derandomize=True, deadline=None, max_examples=80)


@st.composite
def sets(draw, least=2):
    "Identities with 0 to 6 images in each modality, in any order, and P and K that fit them."
    counts = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=least, max_size=14))
    names = draw(st.lists(st.integers(-5, 10**6), min_size=len(counts), max_size=len(counts), unique=True))
    rows = [(name, m) for name, both in zip(names, counts) for m in (0, 1) for _ in range(both[m])]
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(rows))
    identity, modality = (np.array([row[c] for row in rows], dtype=np.int64)[order] for c in (0, 1))
    usable = sum(v > 0 and i > 0 for v, i in counts)
    return identity, modality, usable, draw(st.integers(2, max(2, usable))), draw(st.integers(1, 5))


def epoch(sampler, e=0):
    sampler.set_epoch(e)
    return [(v.copy(), i.copy()) for v, i in sampler]


def same(a, b): return len(a) == len(b) and all(np.array_equal(x, y) for one, two in zip(a, b) for x, y in zip(one, two))


@fuzz
@given(sets())
def test_an_epoch(problem):
    identity, modality, usable, p, k = problem
    if usable < p: return
    sampler = IdentitySampler(identity, modality, p, k, seed=3)
    batches, both = epoch(sampler), {i for i in identity if {0, 1} <= set(modality[identity == i])}
    assert len(batches) == len(sampler) == -(-len(both) // p)
    for rows in batches:
        assert all(len(side) == p * k and (modality[side] == m).all() for m, side in enumerate(rows))
        assert np.array_equal(identity[rows[0]], identity[rows[1]])
        for side in rows:
            people = Counter(identity[side].tolist())
            assert len(people) == p and set(people.values()) == {k}
            for person in people:
                used = Counter(side[identity[side] == person].tolist())
                there = ((identity == person) & (modality == modality[side[0]])).sum()
                assert len(used) == min(there, k) and max(used.values()) - min(used.values()) <= 1
    visits = Counter(person for v, _ in batches for person in set(identity[v].tolist()))
    assert set(visits) == both and sum(visits.values()) == len(batches) * p
    assert all(n == 1 for person, n in visits.items() if person not in identity[batches[-1][0]])


@fuzz
@given(sets(), st.integers(0, 2**40), st.integers(0, 1000))
def test_epochs_repeat_and_differ(problem, seed, e):
    identity, modality, usable, p, k = problem
    if usable < p: return
    one, two = (IdentitySampler(identity, modality, p, k, seed) for _ in range(2))
    epoch(one, e + 1) # what came before has no influence
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert same(epoch(one, e), epoch(two, e)) and same(epoch(one, e), epoch(one, e))
    assert torch.equal(torch.get_rng_state(), state[0]) and np.array_equal(np.random.get_state()[1], state[1])


def test_seeds_and_epochs_give_different_batches():
    identity, modality = np.repeat(np.arange(50), 8), np.tile([0, 1], 200)
    runs = [epoch(IdentitySampler(identity, modality, 8, 2, seed), e) for seed in (0, 1) for e in (0, 1)]
    assert not any(same(a, b) for i, a in enumerate(runs) for b in runs[:i])
    starts = {tuple(identity[run[0][0]]) for run in runs}
    assert len(starts) == 4


def test_the_filling_is_spread_over_all_identities():
    "7 identities, P = 3: two of the others fill the last batch, each as likely."
    identity, modality = np.repeat(np.arange(7), 2), np.tile([0, 1], 7)
    sampler = IdentitySampler(identity, modality, 3, 1)
    visits = Counter(int(i) for e in range(700) for v, _ in epoch(sampler, e) for i in identity[v])
    assert sum(visits.values()) == 700 * 9 and all(abs(n - 900) < 60 for n in visits.values())


@pytest.mark.parametrize("p, k, part", [(8, 1, "7 identities"), (1, 1, "P >= 2"), (0, 1, "P >= 2"), (2, 0, "K >= 1")])
def test_impossible_batches(p, k, part):
    with pytest.raises(InputError, match=part): IdentitySampler(np.repeat(np.arange(7), 2), np.tile([0, 1], 7), p, k)


def test_one_modality_only():
    with pytest.raises(InputError, match="0 identities have images in both"): IdentitySampler(np.arange(9), np.zeros(9), 2, 1)
    with pytest.raises(InputError, match="0 identities"): IdentitySampler([], [], 2, 1)


@fuzz
@given(sets())
def test_images_by_identity(problem):
    identity, modality = problem[:2]
    found = images_by_identity(identity, modality)
    for person in set(identity.tolist()):
        want = [np.flatnonzero((identity == person) & (modality == m)) for m in (0, 1)]
        if all(map(len, want)): assert all(map(np.array_equal, found.pop(person), want))
    assert not found


@fuzz
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 99))
def test_choose(n, k, seed):
    counts = np.bincount(choose(np.arange(n), k, np.random.default_rng(seed)), minlength=n)
    assert counts.sum() == k and counts.max() - counts.min() <= 1


# ---- pixels

class Numbered(ReIDDataset):
    "The pixels of record i are i, the first column of them `draw`."
    def __init__(self, n=12):
        records = pd.DataFrame(dict(identity=np.repeat([70, 5, 9], n // 3), camera=0, modality=np.tile([0, 1], n // 2), split="train"))
        super().__init__("numbered", (8, 8), records)

    def images(self, indices, draw=0):
        out = torch.as_tensor(np.asarray(indices), dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
        out[..., 0] = draw
        return out


def test_load_batch():
    data = Numbered()
    visible, infrared = np.array([8, 0, 4]), np.array([9, 3, 5])
    batch = load_batch(data, visible, infrared, np.array([1, 2, 0]), draw=7)
    assert batch.label.tolist() == [1, 2, 0] and batch.label.dtype == torch.int64
    for pixels, rows in ((batch.visible, visible), (batch.infrared, infrared)):
        assert pixels.shape == (3, 3, 8, 8) and pixels.dtype == torch.float32
        torch.testing.assert_close((pixels[:, 0, 0, 1] * 255).round().long(), torch.from_numpy(rows), rtol=0, atol=0)
        torch.testing.assert_close(pixels[..., 0], torch.full((3, 3, 8), 7 / 255))


def test_flips_follow_their_generator():
    data, rows, labels = Numbered(), (np.arange(0, 12, 2), np.arange(1, 12, 2)), np.zeros(6, int)
    load = lambda key: torch.cat(load_batch(data, *rows, labels, 200, .5, generator("flip", key))[:2])
    before = torch.get_rng_state()
    assert torch.equal(load(1), load(1)) and not torch.equal(load(1), load(2))
    assert torch.equal(before, torch.get_rng_state())
    mirrored = load(1)[:, 0, 0, -1] == 200 / 255
    assert 0 < mirrored.sum() < 12 and torch.equal(load(1)[~mirrored], torch.cat(load_batch(data, *rows, labels, 200)[:2])[~mirrored])


@fuzz
@given(st.integers(0, 5), st.floats(0, 1))
def test_a_flip_mirrors_or_leaves(n, p):
    x = torch.rand(n, 3, 4, 5, generator=generator(n))
    y = random_flip(x, p, generator("f", n))
    for a, b in zip(x, y): assert torch.equal(a, b) or torch.equal(a.flip(-1), b)
    assert y.data_ptr() != x.data_ptr() or not n


def test_classes_are_numbered_over_those_who_can_be_drawn():
    sampler = IdentitySampler([70, 5, 5, 9, 70, 3, 3], [0, 0, 1, 1, 1, 0, 1], 2, 1)
    assert sampler.identities.tolist() == [3, 5, 70] and sampler.label.tolist() == [2, 1, 1, -1, 2, 0, 0]
    for visible, infrared in sampler: assert (sampler.label[visible] == sampler.label[infrared]).all() and (sampler.label[visible] >= 0).all()


@fuzz
@given(st.integers(1, 12), st.integers(1, 5), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_given_labels_keep_every_count(people, images, wrong, missing, seed):
    identity, modality = np.repeat(np.arange(people)*7, 2*images), np.tile([0, 1], people*images)
    before = identity.copy()
    given_ = given_labels(identity, modality, wrong, missing, seed)
    assert (identity == before).all() and np.array_equal(given_, given_labels(identity, modality, wrong, missing, seed))
    known = given_ >= 0
    assert len(np.unique(identity[~known])) == round(missing*people) and not set(identity[~known]) & set(identity[known])
    for m in (0, 1):
        some = known & (modality == m)
        assert sorted(given_[some]) == sorted(identity[some])           # exchanged, not invented
        assert (given_ != identity)[some].sum() <= round(wrong*some.sum())
        if not wrong: assert (given_ == identity)[some].all()


def test_an_exchange_is_a_mistake_where_images_of_one_person_are_rare():
    identity, modality = np.repeat(np.arange(500), 2), np.tile([0, 1], 500)
    for m in (0, 1): assert (given_labels(identity, modality, wrong=.4)[modality == m] != np.arange(500)).sum() == 200
