"""HDF5 whose structure is the attack: each reader refuses it before it takes memory or time."""

import functools
import itertools
import zlib
from pathlib import Path

import data_samples
import h5py
import hostile
import numpy as np
import pytest

from diffrl.base.errors import UserError
from diffrl.data.hdf5 import read_attributes, validate_file, write_episodes
from diffrl.data.reseal import reseal
from diffrl.quality import read_trajectories

DEMO, STATES, POSITION = "data/demo_0", "data/demo_0/states", "data/demo_0/obs/ee_pos"
ARRAYS = ((STATES, 30), (POSITION, 3), (f"{DEMO}/actions", 7))  # that a reader wants, with widths


@pytest.fixture
def place(tmp_path):
    return tmp_path.resolve()


def new(file: h5py.File, name: str, *shape: int, **options) -> h5py.Dataset:
    """An array in place of the one of that name."""
    if name in file:
        del file[name]
    return file.create_dataset(name, shape, options.pop("dtype", np.float64), **options)


@functools.cache
def deflated(mib: int) -> bytes:
    """A stream that unfolds to so many MiB of zeros."""
    stream = zlib.compressobj(9)
    return b"".join(stream.compress(bytes(2**20)) for _ in range(mib)) + stream.flush()


# -- structures: each changes an open file ---------------------------------------------------------
def deep(file):
    """Groups in groups, a thousand deep."""
    group = file[DEMO]
    for _ in range(1000):
        group = group.create_group("obs/a" if "obs" in group else "a")


def cycle(file):
    """A group that is in itself."""
    file[f"{DEMO}/obs/back"] = file[DEMO]


def fan(file):
    """Few groups with many names each: 300 × 300 × 300 paths."""
    groups = [file.require_group(f"{DEMO}/{name}") for name in ("obs", "final", "more")]
    for outer, inner in itertools.pairwise(groups):
        for number in range(300):
            outer[f"x{number}"] = inner
    for number in range(300):
        groups[-1][f"x{number}"] = file[STATES]


def soft_circle(file):
    """Two links that name each other."""
    for name in ("obs", "actions"):
        del file[f"{DEMO}/{name}"]
    file[f"{DEMO}/obs"] = h5py.SoftLink(f"/{DEMO}/actions")
    file[f"{DEMO}/actions"] = h5py.SoftLink(f"/{DEMO}/obs")


def link_outside(file):
    """A demonstration that is another file's."""
    del file[DEMO]
    file[DEMO] = h5py.ExternalLink("/etc/passwd", "/")


def array_link_outside(file):
    """An array that is another file's."""
    for name in (POSITION, f"{DEMO}/actions"):
        del file[name]
        file[name] = h5py.ExternalLink("../../secret.hdf5", "/x")


def virtual(file):
    """Arrays whose values are another file's, which exists."""
    secret = Path(file.filename).with_name("secret.hdf5")
    with h5py.File(secret, "w") as other:
        other["x"] = np.zeros((12, 30))
    for name, width in ARRAYS:
        layout = h5py.VirtualLayout((12, width), np.float64)
        layout[:] = h5py.VirtualSource(secret, "x", (12, 30))[:, :width]
        del file[name]
        file.create_virtual_dataset(name, layout)


def stored_outside(file):
    """Arrays whose bytes are those of another file."""
    secret = Path(file.filename).with_name("secret.bin")
    secret.write_bytes(bytes(12 * 30 * 8))
    for name, width in ARRAYS:
        new(file, name, 12, width, external=[(str(secret), 0, 12 * width * 8)])


def claim(file):
    """Arrays that claim terabytes, and store one chunk."""
    for name, width in ARRAYS:
        new(file, name, 2**37, width, chunks=(8, width))[:8] = 1


def claim_that_wraps(file):
    """Arrays of 2^64 elements, which is 0 in 64 bits."""
    for name, _ in ARRAYS:
        new(file, name, 2**32, 2**32, chunks=(4, 4), compression=1)


def zeros(file):
    """Arrays of half a GiB that deflate packs into half a MiB."""
    for name, width in ARRAYS:
        rows = 2**20 // width  # of 8 MiB
        data = new(file, name, 64 * rows, width, chunks=(rows, width), compression=9)
        for row in range(0, 64 * rows, rows):
            data.id.write_direct_chunk((row, 0), deflated(8))


def large_chunk(file):
    """Small arrays in chunks of half a GiB."""
    for name, width in ARRAYS:
        settings = {"chunks": (2**26, 1), "maxshape": (None, width), "compression": 9}
        data = new(file, name, 12, width, **settings)
        for column in range(width):
            data.id.write_direct_chunk((0, column), deflated(1))


def long_stream(file, rows=12):
    """Chunks whose stream does not end before half a GiB."""
    for name, width in ARRAYS:
        data = new(file, name, rows, width, chunks=(rows, width), compression=9)
        data.id.write_direct_chunk((0, 0), deflated(512))


def long_stream_in_large_chunks(file):
    """The same in chunks that are larger than what is packed."""
    long_stream(file, 2**18)


def packed_twice(file):
    """Deflated zeros, deflated again: a thousand times a thousand."""
    for name, width in ARRAYS:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((12, width))
        settings.set_deflate(9)
        settings.set_deflate(9)
        del file[name]
        space = h5py.h5s.create_simple((12, width))
        data = h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_DOUBLE, space, settings)
        data.write_direct_chunk((0, 0), zlib.compress(deflated(512), 9))


def references(file):
    """Arrays of references to the group that holds them."""
    for name, _ in ARRAYS:
        new(file, name, 12, dtype=h5py.ref_dtype)[:] = file[DEMO].ref


def references_to_regions(file):
    """Arrays of references to parts of arrays."""
    region = file[f"{DEMO}/rewards"].regionref[:3]
    for name, _ in ARRAYS:
        new(file, name, 12, dtype=h5py.regionref_dtype)[:] = region


def ragged(file):
    """Rows of any length, all of them one long row."""
    for name, _ in ARRAYS:
        new(file, name, 12, dtype=h5py.vlen_dtype(np.float64))[0] = np.zeros(2**17)


STRUCTURES = (
    *(deep, cycle, fan, soft_circle, link_outside, array_link_outside, virtual, stored_outside),
    *(claim, claim_that_wraps, zeros, large_chunk, long_stream, long_stream_in_large_chunks),
    *(packed_twice, references, references_to_regions, ragged),
)
UNSEEN = ("deep", "cycle", "fan")  # by a reader that opens what it measures and nothing else


@pytest.fixture
def official(place):
    path = place / "some_demo.hdf5"
    episodes = [data_samples.sample_episode(seed, images=4) for seed in range(2)]
    data_samples.write_official(path, episodes)
    return path


def validated(path):
    """Validate a file; a finding is a refusal."""
    if findings := validate_file(path):
        raise UserError(str(findings[0]))


def measured(path):
    return read_trajectories(path, tell=lambda line: None)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_hostile_structure_is_refused_when_it_is_validated(place, official, structure):
    validated(official)
    with h5py.File(official, "r+") as file:
        structure(file)
    assert hostile.read_in_child(lambda: validated(official), place) == "refused"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_hostile_structure_is_refused_or_left_unseen_when_it_is_measured(
    place, official, structure
):
    measured(official)
    with h5py.File(official, "r+") as file:
        structure(file)
    outcome = hostile.read_in_child(lambda: measured(official), place)
    assert outcome == ("read" if structure.__name__ in UNSEEN else "refused")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_hostile_structure_is_not_sealed(place, structure):
    path = place / "ours.hdf5"
    episodes = [data_samples.sample_episode(seed) for seed in range(2)]
    write_episodes(path, episodes, data_samples.ATTRS)
    with h5py.File(path, "r+") as file:
        structure(file)
    assert hostile.read_in_child(lambda: reseal(path), place) == "refused"


# -- text ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("many", ["names", "long names", "claimed names", "attributes", "texts"])
def test_text_without_bounds_is_refused_unread(place, official, many):
    with h5py.File(official, "r+") as file:
        file["mask/few"] = [b"demo_0"]
    validated(official)  # late imports are over
    with h5py.File(official, "r+") as file:
        mask, data = file["mask"], file["data"]
        if many == "names":
            mask["mine"] = np.full(100_001, b"demo_0")
        elif many == "long names":
            mask.create_dataset("mine", data=["demo_0", "x" * 1000], dtype=h5py.string_dtype())
        elif many == "claimed names":
            mask.create_dataset("mine", (2**37,), "S8", chunks=(8,))[:8] = b"demo_0"
        elif many == "attributes":
            for number in range(101):
                data.attrs[f"a{number}"] = 1
        else:
            data.attrs["env"] = ["a", "b"]
    assert hostile.read_in_child(lambda: validated(official), place) == "refused"
    attributes = hostile.read_in_child(lambda: read_attributes(official), place)
    assert attributes == ("refused" if many in ("attributes", "texts") else "read")


def test_many_names_of_one_long_demonstration_do_not_fill_the_memory(place):
    path = place / "some_demo.hdf5"
    with h5py.File(path, "w") as file:
        demo = file.create_group("demo_0")
        for name, width in (("eef_pos", 3), ("actions", 7)):
            rows = np.zeros((50_000, width))
            demo.create_dataset(name, data=rows, compression=9)
        demo.attrs["fps"] = 20.0
        for number in range(1, 1000):
            file[f"demo_{number}"] = demo
    assert hostile.read_in_child(lambda: measured(path), place) == "refused"


def test_a_packed_file_of_a_recording_is_sound_and_measured(place, official):
    """Compressed as people do it: gzip, lzf, shuffled, with checksums, in chunks of its own."""
    with h5py.File(official, "r+") as file:
        for name, options in (
            (STATES, {"compression": 9, "shuffle": True, "fletcher32": True}),
            (POSITION, {"compression": "lzf"}),
            (f"{DEMO}/actions", {"chunks": (512, 7), "maxshape": (None, 7), "compression": 4}),
        ):
            values = file[name][()]
            new(file, name, *values.shape, **options)[:] = values
    assert validate_file(official) == []
    assert len(measured(official)) == 2


def test_a_stored_stream_that_hdf5_may_unfold_is_not_refused(place, official):
    """Frames of noise, whose chunks are large enough to be looked into."""
    frames = np.random.default_rng(0).integers(0, 256, (12, 256, 256, 3), dtype=np.uint8)
    with h5py.File(official, "r+") as file:
        name = f"{DEMO}/obs/agentview_rgb"
        options = {"dtype": np.uint8, "chunks": (12, 256, 256, 3), "compression": 1}
        new(file, name, *frames.shape, **options)[:] = frames
        data = file[name]
        assert data.id.get_storage_size() > 2**20
    assert validate_file(official) == []
