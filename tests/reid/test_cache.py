"The cache under accidents, the counters against unsigned arithmetic, batches against the slow way."
import hashlib, os, pickle, shutil, signal, subprocess, sys, textwrap, warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from vdistill.reid import cache as C
from vdistill.reid.fakes import fake_regdb
from vdistill.reid.augmentation import Augmentation, Counter, Drawn, exchange_channels, mix, random_crop, random_erase, random_flip, random_grey
from vdistill.reid.batches import load_batch
from vdistill.reid.cache import PixelCache, cache_faults, cache_folder
from vdistill.reid.pixels import Pixels, is_fixed, on_device
from vdistill.core import InputError, generator
from vdistill.reid.data import load_dataset
from vdistill.reid.views import uniform
from vdistill.reid.records import DataWarning
from vdistill.bench.dispatch import count_operations

ROOT, SIZE = Path(__file__).resolve().parents[2], (16, 8)
fuzz = settings(derandomize=True, deadline=None, max_examples=60)
pytestmark = pytest.mark.filterwarnings("ignore::vdistill.reid.records.DataWarning")
STRONG = Augmentation(flip=.5, pad=3, grey=.3, exchange=.5, erase=.7, fill="noise")


@pytest.fixture(scope="module")
def original(tmp_path_factory): return fake_regdb(tmp_path_factory.mktemp("cache") / "RegDB", people=16, image_size=(20, 10))


@pytest.fixture
def tree(original, tmp_path): return shutil.copytree(original, tmp_path / "RegDB")


def images(tree): return sorted(tree.glob("*/*/*.bmp"))


def make(tree, folder): return PixelCache(images(tree), SIZE, folder, "x")


def pixels(cache): return cache.images(np.arange(len(cache)))


def slowly(tree): return torch.from_numpy(np.stack([C.decode(p, SIZE) for p in images(tree)]))


def message(function, *args, **options):
    with pytest.raises(InputError) as error: function(*args, **options)
    return str(error.value)


def python(code, *args, **options):
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


BUILD = """
    import sys
    from pathlib import Path
    from vdistill.reid import cache as C
    def make(): return C.PixelCache(sorted(Path(sys.argv[1]).glob("*/*/*.bmp")), (16, 8), sys.argv[2], "x")
    """


@pytest.fixture
def not_decoded(monkeypatch):
    "From here on, decoding is a mistake."
    def stop(): monkeypatch.setattr(C, "decode", lambda *_: 1/0)
    return stop


# ---- the file

def test_pixels_are_those_of_the_images(tree, tmp_path, not_decoded):
    cache = make(tree, tmp_path / "c")
    assert len(cache) == 320 and torch.equal(pixels(cache), slowly(tree)) and cache.whole
    rows = np.array([319, 0, 7, 7, 300, 1])
    assert torch.equal(cache.images(rows), pixels(cache)[rows]) and cache.images([]).shape == (0, 3, *SIZE)
    assert np.array_equal(np.load(cache.file), pixels(cache).numpy()) # an ordinary .npy file
    assert cache.notes[0].endswith(f"kept in {cache.file} (0.12 MB); remove this file to have the room back") and len(cache.notes) == 1
    not_decoded()
    again = make(tree, tmp_path / "c")
    assert torch.equal(pixels(again), pixels(cache)) and not again.notes and sorted(p.suffix for p in (tmp_path / "c").iterdir()) == [".json", ".npy"]


def test_it_is_given_copies(tree, tmp_path):
    cache = make(tree, tmp_path / "c")
    cache.images([0]).zero_()
    assert cache.images([0]).any()


def test_it_travels_without_its_pixels(tree, tmp_path):
    cache = PixelCache(images(tree), (64, 64), tmp_path / "c", "x")
    packed = pickle.dumps(cache)
    assert len(packed) < cache.nbytes/10 and torch.equal(pickle.loads(packed).images([3, 319]), cache.images([3, 319]))


def test_moved_and_touched_trees_keep_their_cache(tree, tmp_path, not_decoded):
    before = make(tree, tmp_path / "c")
    moved = tree.rename(tmp_path / "elsewhere")
    for p in images(moved)[::3]: os.utime(p, (1e9, 1e9))
    not_decoded()
    after = make(moved, tmp_path / "c")
    assert after.file == before.file and not after.notes
    read = []
    content, C.content_hash = C.content_hash, lambda p: read.append(p) or content(p)
    try: make(moved, tmp_path / "c")
    finally: C.content_hash = content
    assert not read # the new dates were remembered


def test_a_changed_image_is_noticed(tree, tmp_path):
    cache, paths = make(tree, tmp_path / "c"), images(tree)
    one, other = (next(p for p in paths if "Visible" in str(p) and f"/{i}/" in p.as_posix()) for i in (2, 3))
    date = os.stat(one)
    one.write_bytes(other.read_bytes())
    os.utime(one, ns=(date.st_atime_ns, date.st_mtime_ns)) # of the same size and date: escapes the opening, as is said
    assert not (hidden := make(tree, tmp_path / "c")).notes and hidden.sources_changed() == [] and hidden.sources_changed(all_of_them=True) == [one.relative_to(tree).as_posix()]
    os.utime(one, (1e9, 1e9))
    after = make(tree, tmp_path / "c")
    assert torch.equal(pixels(after), slowly(tree)) and not torch.equal(pixels(after), pixels(cache))
    assert f"made again, as 1 of 320 images changed, such as {one.relative_to(tree).as_posix()}" in after.notes[0]


@pytest.mark.parametrize("change", ["another size of image", "one image more", "another decoder", "a longer file"])
def test_what_has_another_name(tree, tmp_path, monkeypatch, change):
    paths, size = images(tree), SIZE
    before = PixelCache(paths, size, tmp_path / "c", "x").file
    if change == "another size of image": size = (16, 9)
    if change == "one image more": shutil.copy(paths[0], paths[0].with_name("new.bmp")); paths = images(tree)
    if change == "another decoder": monkeypatch.setattr(C, "decoder", lambda: "pillow 0")
    if change == "a longer file": paths[0].write_bytes(paths[0].read_bytes() + b"\0")
    assert PixelCache(paths, size, tmp_path / "c", "x").file != before and before.exists()


# ---- accidents

@pytest.mark.parametrize("where", [0, 6, 30, 70, 128, 129, 5000, -1, -60000])
@pytest.mark.parametrize("ending", [".npy", ".json"])
def test_a_flipped_bit_is_never_used(tree, tmp_path, where, ending):
    cache = make(tree, tmp_path / "c")
    want, file = pixels(cache), cache.file.with_suffix(ending)
    data = bytearray(file.read_bytes())
    data[where % len(data)] ^= 2
    file.write_bytes(data)
    if ending == ".npy" and where not in (6, 70): assert cache_faults(cache.file) # version and padding of the head may pass
    after = make(tree, tmp_path / "c")
    assert torch.equal(pixels(after), want)
    if ending == ".npy" and (where % len(data)) >= 128: assert "1 of its 2 blocks of 256 images were damaged" in after.notes[0] and not cache_faults(after.file)


@pytest.mark.parametrize("length", [0, 50, 128, 60000])
def test_cut_short(tree, tmp_path, length):
    cache = make(tree, tmp_path / "c")
    os.truncate(cache.file, length)
    assert "cut short" in cache_faults(cache.file)[0]
    after = make(tree, tmp_path / "c")
    assert torch.equal(pixels(after), slowly(tree)) and "cut short" in after.notes[0]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"paths": [], "times": [], "contents": [], "blocks": [], "shape": []}'])
def test_a_damaged_note(tree, tmp_path, text):
    cache = make(tree, tmp_path / "c")
    cache.file.with_suffix(".json").write_text(text)
    after = make(tree, tmp_path / "c")
    assert torch.equal(pixels(after), slowly(tree)) and "made again" in after.notes[0]
    cache.file.unlink() # the note alone is no cache
    assert torch.equal(pixels(make(tree, tmp_path / "c")), slowly(tree))


def test_a_large_cache_is_checked_block_by_block(tree, tmp_path, monkeypatch):
    make(tree, tmp_path / "c")
    monkeypatch.setattr(C, "SMALL", 0)
    cache = make(tree, tmp_path / "c")
    assert not cache.checked.any()
    with open(cache.file, "r+b") as f: f.seek(-1, 2); byte = f.read(1)[0]; f.seek(-1, 2); f.write(bytes([byte ^ 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        assert torch.equal(cache.images([0, 255]), slowly(tree)[[0, 255]]) and cache.checked.tolist() == [True, False] and not cache.notes
    with pytest.warns(DataWarning, match="1 of its 2 blocks"): got = cache.images([319])
    assert torch.equal(got, slowly(tree)[[319]]) and not cache_faults(cache.file)


def test_a_killed_build_leaves_no_cache(tree, tmp_path):
    killed = python(BUILD + """
    import os, signal
    true, calls = C.decode, []
    def decode(path, size):
        calls.append(path)
        if len(calls) == 300: os.kill(os.getpid(), signal.SIGKILL)
        return true(path, size)
    C.decode = decode
    make()
    """, tree, tmp_path / "c")
    assert killed.wait(60) == -signal.SIGKILL
    litter, = (p for p in (tmp_path / "c").iterdir() if p.suffix != ".lock")
    assert litter.name.startswith(".") and litter.stat().st_size < 320 * 3 * 16 * 8 # in the middle: one block of two, or what of it was not held back
    cache = make(tree, tmp_path / "c")
    assert torch.equal(pixels(cache), slowly(tree)) and "made again" not in cache.notes[0] and litter.exists()
    cache.file.unlink(); os.utime(litter, (1e9, 1e9))
    make(tree, tmp_path / "c")
    assert not litter.exists()


def test_killed_between_the_two_files(tree, tmp_path, monkeypatch):
    "The description is there first: alone it is no cache, and beside older pixels it tells that they are others."
    cache, paths, remember = make(tree, tmp_path / "c"), images(tree), PixelCache._remember
    def killed(*args): remember(*args); raise KeyboardInterrupt
    def kill():
        monkeypatch.setattr(PixelCache, "_remember", killed)
        with pytest.raises(KeyboardInterrupt): make(tree, tmp_path / "c")
        monkeypatch.undo()
    one, other = (next(p for p in paths if "Visible" in str(p) and f"/{i}/" in p.as_posix()) for i in (2, 3))
    one.write_bytes(other.read_bytes())
    os.utime(one, (1e9, 1e9))
    kill()
    assert cache_faults(cache.file)
    after = make(tree, tmp_path / "c")
    assert torch.equal(pixels(after), slowly(tree)) and "1 of its 2 blocks of 256 images were damaged" in after.notes[0]
    cache.file.unlink()
    kill()
    assert [p.suffix for p in (tmp_path / "c").iterdir()] == [".json"]
    assert torch.equal(pixels(make(tree, tmp_path / "c")), slowly(tree))


def test_two_processes_at_once(tree, tmp_path):
    two = [python(BUILD + """
    import hashlib
    print("ready", flush=True); sys.stdin.readline()
    for _ in range(4):
        cache = make()
        print(hashlib.sha256(cache.images(range(len(cache))).numpy().tobytes()).hexdigest(), flush=True)
        cache.file.with_suffix(".json").unlink(missing_ok=True) # and again
    """, tree, tmp_path / "c", stdin=subprocess.PIPE) for _ in range(2)]
    for p in two: assert p.stdout.readline() == "ready\n"
    for p in two: p.stdin.write("go\n"); p.stdin.flush()
    said = [p.communicate(timeout=600) for p in two]
    hashes = {line for out, _ in said for line in out.split()}
    assert [p.returncode for p in two] == [0, 0] and sum(len(out.split()) for out, _ in said) == 8, said
    assert hashes == {hashlib.sha256(slowly(tree).numpy().tobytes()).hexdigest()}
    assert torch.equal(pixels(make(tree, tmp_path / "c")), slowly(tree)) and not list((tmp_path / "c").glob(".*"))


def test_of_several_processes_one_decodes(tree, tmp_path):
    "As those of torchrun, which all open the same data set."
    code = BUILD + """
    calls, decode = [], C.decode
    def slow(*args):
        calls.append(1); C.time.sleep(.02)
        return decode(*args)
    C.decode = slow
    print("ready", flush=True); sys.stdin.readline()
    if sys.argv[3] == "damage": C.damaged_blocks = lambda *args, found=iter([[0]]): next(found, [])
    cache = make()
    print(len(calls), len(cache), *cache.notes)
    """
    for case in ("missing", "damage"):
        three = [python(code, tree, tmp_path / "c", case, stdin=subprocess.PIPE) for _ in range(3)]
        for p in three: assert p.stdout.readline() == "ready\n"
        for p in three: p.stdin.write("go\n"); p.stdin.flush()
        said = [p.communicate(timeout=600)[0].split(maxsplit=2) for p in three]
        n = len(images(tree))
        assert sorted(int(calls) for calls, *_ in said) == [0, 0, n] and {int(count) for _, count, _ in said} == {n}, said
        assert all(note for *_, note in said) and not list((tmp_path / "c").glob(".*"))


def test_a_killed_builder_keeps_nobody_waiting(tree, tmp_path):
    builder = python(BUILD + """
    def stuck(*_):
        print("decoding", flush=True); C.time.sleep(600)
    C.PixelCache._decode_all = stuck
    make()
    """, tree, tmp_path / "c")
    assert builder.stdout.readline() == "decoding\n" and list((tmp_path / "c").glob(".*.lock"))
    builder.kill(); builder.wait()
    assert torch.equal(pixels(make(tree, tmp_path / "c")), slowly(tree)) and not list((tmp_path / "c").glob(".*"))


# ---- disks

def test_no_room(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**5))
    said = message(make, tree, tmp_path / "c")
    assert "0.10 MB free" in said and "takes 0.12 MB" in said and "cache=DIR" in said and not list((tmp_path / "c").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_write_that_fails(tree, tmp_path):
    "A limit on the size of files stands for a disk that fills up while it is written to."
    done = python(BUILD + """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))
    try: make()
    except C.InputError as e: print(e)
    """, tree, tmp_path / "c")
    out, err = done.communicate(timeout=600)
    assert "cannot be written (File too large); it takes 0.12 MB" in out and not err and not list((tmp_path / "c").iterdir())


def test_no_folder_can_be_made(tree, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in message(make, tree, tmp_path / "file") and "cannot be written" in message(make, tree, tmp_path / "file" / "below")


def test_others_caches_may_be_read_only(tree, tmp_path, monkeypatch, not_decoded):
    make(tree, tmp_path / "c")
    os.utime(images(tree)[0], (1e9, 1e9)) # would be remembered
    def refuse(*_): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(C, "atomic_path", refuse)
    not_decoded()
    assert not make(tree, tmp_path / "c").notes


def test_every_fault_is_named_and_nothing_left(tree, tmp_path):
    bad = images(tree)[3:5]
    for p in bad: p.write_bytes(b"no image")
    said = message(make, tree, tmp_path / "c")
    assert all(str(p) in said for p in bad) and "doctor" in said and not list((tmp_path / "c").iterdir())
    bad[0].unlink()
    assert f"{bad[0]}: missing" in message(PixelCache, [bad[0]], SIZE, tmp_path / "c", "x") and "no images" in message(PixelCache, [], SIZE, tmp_path, "x")


def test_folders(monkeypatch, tmp_path):
    assert cache_folder(None) is None and cache_folder(False) is None and cache_folder(tmp_path) == tmp_path and cache_folder("~/x") == Path.home() / "x"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("auto") == cache_folder(True) == tmp_path / "vdistill"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative") # to be ignored, says the specification
    assert cache_folder("auto") == Path.home() / ".cache" / "vdistill"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder(True) == Path.home() / "Library" / "Caches" / "vdistill"
    monkeypatch.setattr(sys, "platform", "win32"); monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "L"))
    assert cache_folder(True) == tmp_path / "L" / "vdistill" / "Cache"


def test_a_dataset_says_where_its_pixels_are(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(DataWarning, match="decoded pixels are kept in") as told: first = load_dataset(f"regdb:{tree}", image_size=SIZE, cache="auto")
    assert len(told) == 1 and str(tmp_path / "vdistill") in first.notes[-1] and first.cache.file.parent == tmp_path / "vdistill"
    second = load_dataset(f"regdb:{tree}", image_size=SIZE, cache=True, trial=3)
    assert not second.notes and second.cache.file == first.cache.file
    assert load_dataset(f"regdb:{tree}", image_size=SIZE).cache is None


# ---- pixels

@pytest.fixture
def sets(tree, tmp_path):
    cached, plain = (load_dataset(f"regdb:{tree}", image_size=SIZE, cache=c) for c in (tmp_path / "c", None))
    return {"cached": cached, "decoded": plain, "synthetic": load_dataset("synthetic", identities=(9, 2, 2), image_size=SIZE)}


@pytest.mark.parametrize("name", ["cached", "decoded", "synthetic"])
def test_pixels_of_a_dataset(sets, name):
    data = sets[name]
    rows = np.array([5, 200, 5, 0, len(data) - 1])
    source = Pixels(data, device="cpu")
    assert source.table is None and torch.equal(source.images(rows), data.images(rows)) and is_fixed(data) == (name != "decoded")
    source._keep(np.unique(rows)) # what happens on a GPU where it fits
    data.images = lambda *_, **__: 1/0
    assert torch.equal(source.images(rows[::-1]), Pixels._read(source, rows[::-1]) if name == "cached" else source.table[[3, 0, 1, 2, 1]])
    assert "record 6 is not among" in message(source.images, [5, 6])


def test_the_cached_images_are_the_decoded_ones(sets):
    rows = np.random.default_rng(0).integers(0, 320, 100)
    assert torch.equal(sets["cached"].images(rows), sets["decoded"].images(rows)) and torch.equal(Pixels(sets["cached"]).images(rows), sets["decoded"].images(rows))


def test_views_follow_their_drawing(pairs_dir):
    data = load_dataset(f"pairs:{pairs_dir}", max_scenes=6)
    source = Pixels(data)
    assert not is_fixed(data) and torch.equal(source.images([0, 9], draw=4), data.images([0, 9], draw=4)) and not torch.equal(source.images([0], draw=4), source.images([0], draw=5))


# ---- counters

words = st.integers(-2**63, 2**63 - 1)


@fuzz
@given(st.integers(0, 2**62), st.sampled_from(["a", "augmentation"]), st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 40), st.integers(0, 9))
def test_counters_are_the_numpy_numbers(seed, name, step, rows, columns, start):
    counter = Counter(seed, name, step)
    key = generator(name, step, seed=seed).initial_seed()
    want = uniform(key, 0, np.arange(rows), columns + start)[:, start:]
    got = counter.uniform(rows, columns, start)
    assert got.dtype == torch.float64 and np.array_equal(got.numpy(), want)
    assert torch.equal(Drawn(counter, rows + 3, columns + start).uniform(rows, columns, start), got)


@fuzz
@given(words, words)
def test_the_mixer_against_whole_numbers(state, word):
    mask, x = 2**64 - 1, (state + word + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30)*0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27)*0x94D049BB133111EB & mask
    x ^= x >> 31
    assert mix(state, word) % 2**64 == x
    for a, b in ((torch.tensor([state]), torch.tensor([word])), (state, torch.tensor([word])), (torch.tensor([state]), word)): assert int(mix(a, b)) % 2**64 == x


def test_bytes_are_the_hashes_bytes():
    counter = Counter(5, "noise", 3)
    got, hashes = counter.bytes(7, 21), counter.words(7, 3)
    want = [[int(w) % 2**64 >> 8*i & 255 for w in row for i in range(8)][:21] for row in hashes]
    assert got.dtype == torch.uint8 and got.tolist() == want and torch.equal(counter.bytes(7, 3), got[:, :3])


def test_counters_have_no_state_and_touch_none():
    images = torch.randint(0, 256, (40, 3, 16, 8), dtype=torch.uint8, generator=generator("x"))
    counter, before = Counter(1, "augmentation", 2), torch.get_rng_state()
    first = STRONG(images, counter)
    assert torch.equal(first, STRONG(images, counter)) and torch.equal(first, STRONG(images, Counter(1, "augmentation", 2))) and torch.equal(before, torch.get_rng_state())
    others = [STRONG(images, c) for c in (Counter(2, "augmentation", 2), Counter(1, "augmentation", 3), Counter(1, "aug", 2))]
    assert all(((o != first).flatten(1).any(1)).float().mean() > .8 for o in others)
    assert torch.equal(STRONG(images[:9], counter), first[:9]) # a row does not depend on the others


def test_flip_and_erase_are_drawn_apart():
    "Independent columns: knowing who is mirrored says nothing about who is covered."
    images = torch.randint(0, 256, (4000, 3, 8, 8), dtype=torch.uint8, generator=generator("y"))
    flipped, erased = ((f(images, .5, Counter(3)) != images).flatten(1).any(1).double() for f in (random_flip, random_erase))
    assert abs(flipped.mean() - .5) < .03 and abs(erased.mean() - .49) < .05 and abs(torch.corrcoef(torch.stack([flipped, erased]))[0, 1]) < .06


def test_no_two_functions_share_a_column():
    class Recorder(Counter):
        asked = []
        def uniform(self, rows, columns, start=0, device="cpu"):
            self.asked.append(range(start, start + columns))
            return super().uniform(rows, columns, start, device)
    for f in (random_flip, random_crop, random_grey, exchange_channels, random_erase): f(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 1, Recorder(0))
    columns = [c for asked in Recorder.asked for c in asked]
    assert len(Recorder.asked) == 5 and sorted(columns) == list(range(29)) # each once


# ---- batches

def test_batches_by_counter(sets):
    data = sets["cached"]
    visible, infrared = (np.flatnonzero(data.records.modality == m)[:30] for m in (0, 1))
    batch = lambda source, step, **o: load_batch(source, visible, infrared, np.arange(30), 0, STRONG, Counter(0, "augmentation", step), **o)
    a, b = batch(data, 4), batch(Pixels(data), 4)
    assert all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(a.visible, batch(data, 5).visible)
    want = STRONG(data.images(np.concatenate([visible, infrared])), Counter(0, "augmentation", 4)).float()/255
    assert torch.equal(torch.cat([a.visible, a.infrared]), want) and a.label.tolist() == list(range(30)) and a.label.dtype == torch.int64
    assert all(torch.equal(x, y) for x, y in zip(a, batch(data, 4, device="cpu")))


def test_a_batch_asks_nothing_of_the_host(sets):
    data = sets["cached"]
    table = Pixels(data); table._keep(np.arange(len(data)))
    def run(n): return lambda: load_batch(table, np.arange(n), np.arange(n, 2*n), np.arange(n), 0, STRONG, Counter(0, "augmentation", 1))
    small, large = (count_operations(run(n)) for n in (4, 64))
    assert small.syncs == large.syncs == 0 and small.operations == large.operations < 250, large
    assert large.names["index_select"] == 1


def test_augmentation_runs_where_values_are_unknown():
    "On meta tensors nobody can look at a value; so on a GPU the host need not wait for one."
    images = torch.empty(12, 3, 16, 8, dtype=torch.uint8, device="meta")
    assert STRONG(images, Counter(0)).shape == images.shape and Augmentation(.5, 2, .5, .5, .5)(images, Counter(0)).device.type == "meta"


def test_on_device_leaves_alone_what_is_there():
    x = torch.arange(3)
    assert on_device(x, "cpu") is x and on_device(np.arange(3), "cpu").tolist() == [0, 1, 2]


# ---- on a GPU

@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_counters_on_a_gpu():
    counter = Counter(9, "augmentation", 31)
    assert torch.equal(counter.words(300, 70, 5, "cuda").cpu(), counter.words(300, 70, 5))
    assert torch.equal(counter.uniform(300, 70, device="cuda").cpu(), counter.uniform(300, 70)) and torch.equal(counter.bytes(50, 77, "cuda").cpu(), counter.bytes(50, 77))
    images = torch.randint(0, 256, (96, 3, 48, 24), dtype=torch.uint8, generator=generator("gpu"))
    for augment in (Augmentation(flip=.5, pad=5, grey=.2, exchange=.5), Augmentation(erase=1., fill="noise")):
        assert torch.equal(augment(images.cuda(), counter).cpu(), augment(images, counter)), augment
    mean = (random_erase(images.cuda(), 1., counter).cpu().int() - random_erase(images, 1., counter).int()).abs()
    assert mean.max() <= 1 # a mean of bytes at one half may be rounded either way


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("share", [.5, 0.])
def test_pixels_on_a_gpu(sets, share):
    data, train = sets["cached"], sets["cached"].indices("train")
    source = Pixels(data, train, "cuda", share)
    assert (source.table is not None) == (share > 0)
    got = source.images(train[::-1])
    assert got.is_cuda and got.dtype == torch.uint8 and torch.equal(got.cpu(), data.images(train[::-1]))
    views = Pixels(sets["decoded"], train, "cuda")
    assert views.table is None and torch.equal(views.images(train[:9]).cpu(), data.images(train[:9]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("share", [.5, 0.])
def test_batches_on_a_gpu_do_not_make_the_host_wait(sets, share):
    data = sets["cached"]
    visible, infrared = (np.flatnonzero(data.records.modality == m)[:40] for m in (0, 1))
    source = Pixels(data, np.concatenate([visible, infrared]), "cuda", share)
    def batch(step, source=source): return load_batch(source, visible, infrared, np.arange(40), 0, STRONG, Counter(0, "augmentation", step))
    for step in range(3): batch(step) # pinned buffers are there afterwards
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try: made = [batch(step) for step in range(3, 6)]
    finally: torch.cuda.set_sync_debug_mode("default")
    for step, got in zip(range(3, 6), made):
        want = batch(step, data)
        assert got.visible.is_cuda and got.label.is_cuda and got.label.tolist() == want.label.tolist()
        for a, b in zip(got[:2], want[:2]): torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-6) # bytes are equal; the division may differ in the last digit
