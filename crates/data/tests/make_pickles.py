"""Golden pickles: dictionaries of arrays and lists of shards as Python and NumPy write them, and a look at what
Calotype wrote.

    python make_pickles.py write 1    # with NumPy 1.26: golden/pickles/np1_p{2,3,4,5}.pickle
    python make_pickles.py write 2    # with NumPy 2.x: golden/pickles/np2_p{2,3,4,5}.pickle, wdinfo_p{2,4}.pkl
    python make_pickles.py read       # with either: checks golden/pickles/calotype.pickle and calotype_wdinfo.pkl

The last two files are made by `CALOTYPE_WRITE_GOLDEN=1 cargo test -p calotype-data --test it pickled`.
"""

import pathlib
import pickle
import sys

import numpy

FOLDER = pathlib.Path(__file__).parent / "golden" / "pickles"


def arrays():
    """The arrays of tests/it/pickled.rs."""
    grid = numpy.arange(6, dtype="<f4").reshape(2, 3) - 2.5
    wide = numpy.arange(24, dtype="<f4").reshape(4, 6)
    return {
        "autoencoderkl_image": (numpy.arange(32, dtype="<f2").reshape(8, 2, 2) / 4),
        "clip-vit-large-patch14_text": grid,
        "big_endian": grid.astype(">f4"),
        "big_endian_ints": numpy.array([1, -2], dtype=">i8"),
        "fortran": numpy.asfortranarray(grid),
        "strided": wide[1::2, ::3],
        "scalar": numpy.array(7, dtype="<i8"),
        "empty": numpy.zeros((2, 0, 3), dtype="<f4"),
    }


WDINFO = {"tar_files": ["00000.tar", "00001.tar", "last_few_00000.tar"], "chunk_size": 1000, "total_key_count": 3000}


def write(numpy_major):
    assert numpy.__version__.startswith(f"{numpy_major}."), numpy.__version__
    FOLDER.mkdir(parents=True, exist_ok=True)
    for protocol in (2, 3, 4, 5):
        (FOLDER / f"np{numpy_major}_p{protocol}.pickle").write_bytes(pickle.dumps(arrays(), protocol))
    if numpy_major == "2":
        for protocol in (2, 4):
            (FOLDER / f"wdinfo_p{protocol}.pkl").write_bytes(pickle.dumps(WDINFO, protocol))
        (FOLDER / "wdinfo_numpy.pkl").write_bytes(pickle.dumps({**WDINFO, "chunk_size": numpy.int64(1000)}, 4))
        (FOLDER / "float64.pickle").write_bytes(pickle.dumps({"double": numpy.zeros(1, "<f8")}, 4))
        (FOLDER / "objects.pickle").write_bytes(pickle.dumps({"objects": numpy.array([None, "a"])}, 4))


def read():
    found = pickle.loads((FOLDER / "calotype.pickle").read_bytes())
    expected = arrays()
    assert sorted(found) == sorted(expected), sorted(found)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("<"), name
        assert found[name].shape == array.shape and found[name].flags.c_contiguous and found[name].flags.writeable
        assert (found[name] == array).all(), name
    assert pickle.loads((FOLDER / "calotype_wdinfo.pkl").read_bytes()) == WDINFO
    print(f"NumPy {numpy.__version__} reads them")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
