"""Files made to harm: nothing of them runs, nothing is allocated on their word, packing goes on."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lensdist.data.packing.pack import PackOptions, pack
from lensdist.data.reading import raw
from lensdist.data.reading.object_arrays import parse_axion, save_axion
from lensdist.data.reading.raw import BadFile, read_bytes
from lensdist.data.reading.readers import Reading, parse
from lensdist.utils.errors import RunError
from tests.conftest import until
from tests.faults.payload import Payload
from tests.sockets import children
from tests.unit import data_files
from tests.unit.data_files import image

pytestmark = pytest.mark.faults


def object_npy(*items: Any) -> bytes:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["root", "image", "mass", "inside"])
def test_a_payload_is_not_executed(tmp_path: Path, protocol: int, place: str) -> None:
    marker = tmp_path / "executed"
    payload = Payload(marker)
    pair = np.empty(2, dtype=object)
    pair[0], pair[1] = image(0), 1e-23
    if place == "inside":
        pair[0] = np.array([payload, payload], dtype=object)
    elif place != "root":
        pair[("image", "mass").index(place)] = payload
    data = pickle.dumps(payload if place == "root" else pair, protocol=protocol)
    if place != "inside":  # where NumPy would hand the same object out twice
        pickle.loads(data)  # noqa: S301  # the control: this payload is live
        assert marker.exists()
        marker.rmdir()
    with pytest.raises(BadFile):
        parse_axion(data)
    assert not marker.exists()


def test_a_payload_in_a_set_is_quarantined_by_name_and_the_rest_is_packed(tmp_path: Path) -> None:
    src = data_files.model_ii(tmp_path / "src", n=40)
    marker = tmp_path / "executed"
    (src / "Dataset/axion/axion_sim_666.npy").write_bytes(object_npy(image(0), Payload(marker)))
    manifest, report = pack(src, tmp_path / "out")
    assert manifest.count == 120
    assert "no array needs" in report.quarantined["Dataset/axion/axion_sim_666.npy"]
    assert not marker.exists()


def opcodes(text: bytes) -> bytes:
    return b"\x80\x04" + text + b"."


@pytest.mark.parametrize(
    "data",
    [
        opcodes(b"cbuiltins\neval\n\x8c\x011\x85R"),
        opcodes(b"cnumpy\nload\n\x8c\x01x\x85R"),
        opcodes(b"cnumpy.testing._private.utils\nrunstring\n\x8c\x01x}\x86R"),
        opcodes(b"\x8c\x05numpy\x8c\x10ndarray.__class__\x93"),
        # writing to the constructors themselves
        opcodes(b"cnumpy\nndarray\n}b"),
        opcodes(b"cnumpy.core.multiarray\n_reconstruct\nN\x8c\x06_buildN\x86b"),
        # opcodes no array needs
        opcodes(b"\x82\x01"),
        opcodes(b"Pid\n"),
        opcodes(b"(ios\nsystem\n"),
        opcodes(b"cnumpy\nndarray\n)\x81"),
        # memory: a memo of 2^31 entries, a length of 2^60, endless nesting
        opcodes(b"Nr\xff\xff\xff\x7f"),
        opcodes(b"\x8e" + (2**60).to_bytes(8, "little") + b"x"),
        opcodes(b"\x95" + (2**60).to_bytes(8, "little") + b"N"),
        opcodes(b"N" + b"\x85" * 100_000),
        opcodes(b"(" * 900),
        # stack confusion
        opcodes(b"R"),
        opcodes(b"e"),
        opcodes(b"h\x05"),
        b"",
        b"\x80",
        b"\x80\x63N.",
    ],
)
def test_crafted_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(BadFile):
        parse_axion(data)


def test_a_refused_pickle_does_not_spoil_the_next_one() -> None:
    for name in (b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n"):
        with pytest.raises(BadFile):
            parse_axion(opcodes(name + b"N}\x8c\x06_buildNs\x86b"))
    good = object_npy(image(0), 1e-23)
    np.testing.assert_array_equal(parse(good, ".npy").image[0], image(0).astype(np.float32))


def test_an_array_that_claims_more_than_its_bytes_is_refused() -> None:
    pair = np.empty(2, dtype=object)
    pair[:] = [image(0), 1e-23]
    good = pickle.dumps(pair, protocol=3)  # without frames, so its length may change
    assert parse_axion(good)[1] == 1e-23
    shape = b"K\x08K\x08\x86"
    assert good.count(shape) == 1
    with pytest.raises(BadFile, match="do not fill its shape"):
        parse_axion(good.replace(shape, b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"))
    with pytest.raises(BadFile, match="impossible shape"):
        parse_axion(good.replace(shape, b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"))


def lying_npy(shape: str, descr: str = "'<f8'", rest: bytes = bytes(512)) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    padded = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode() + rest


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (lying_npy("(1000000, 1000000)"), "cut short"),
        (lying_npy(f"({2**62}, {2**62})"), "cut short"),
        (lying_npy("(-8, -8)"), "negative"),
        (lying_npy("(8, 7)"), "followed by other bytes"),
        (lying_npy("(8, 8)", rest=bytes(511)), "cut short"),
        (lying_npy("8"), "header"),
        (lying_npy("(8.0, 8)"), "header"),
        (lying_npy("(8, 8)", descr="'|O'"), "Python objects"),
        (lying_npy("(2,)", descr="[('a', '|O'), ('b', '<f8')]"), "real numbers"),
        (lying_npy("(8, 8)", descr="__import__('os').getcwd()"), "header"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "header"),
        (b"\x93NUMPY\x09\x00\x00\x00", "version"),
        (b"<html>404</html>", "not an .npy"),
        (b"\x00\x05\x16\x07macOS", "not an .npy"),
    ],
)
def test_npy_headers_that_lie(data: bytes, why: str) -> None:
    with pytest.raises(BadFile, match=why):
        parse(data, ".npy")


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def test_zip_bombs_are_refused_by_what_they_declare_and_by_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(raw, "MAX_BYTES", limit := 1 << 20)
    bomb = zipped({"image.npy": bytes(limit + 1)})
    assert len(bomb) < limit // 100
    with pytest.raises(BadFile, match="unpacks to more"):
        parse(bomb, ".npz")
    honest = (limit + 1).to_bytes(4, "little")
    for lie in (100, 0):
        with pytest.raises(BadFile):
            parse(bomb.replace(honest, lie.to_bytes(4, "little")), ".npz")


def test_odd_archives_are_refused() -> None:
    for data in (
        b"PK\x03\x04junk",
        zipped({}),
        zipped({"image.npy": b"junk"}),
        zipped({"image.npy": object_npy(1, 2)}),
        zipped({"image.npy": lying_npy("(8, 8)")}, zipfile.ZIP_LZMA),
        zipped({"image/": b""}),
    ):
        with pytest.raises(BadFile):
            parse(data, ".npz")


def fits_bytes() -> bytes:
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(image(0).astype(">f4"))]).writeto(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"NAXIS1  =                    8", b"NAXIS1  =          10000000000"),
        (b"NAXIS1  =                    8", b"NAXIS1  =                   -8"),
        (b"NAXIS1  =                    8", b"NAXIS1  =                    A"),
        (b"NAXIS   =                    2", b"NAXIS   =                  999"),
        (b"BITPIX  =                  -32", b"BITPIX  =                   99"),
        (b"END", b"XXX"),
        (fits_bytes()[2900:], b""),  # cut short
        (b"SIMPLE  =", b"\x1f\x8b\x08    "),
    ],
)
def test_fits_headers_that_lie(old: bytes, new: bytes) -> None:
    data = fits_bytes()
    assert old in data
    with pytest.raises(BadFile):
        parse(data.replace(old, new), ".fits")


def test_pipes_devices_and_huge_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    with (tmp_path / "huge.npy").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    for name, why in (("pipe", "regular"), ("zero", "regular"), ("huge", "larger than")):
        with pytest.raises(BadFile, match=why):
            read_bytes(tmp_path / f"{name}.npy")


SEEDS = {
    ".npy": object_npy(image(0), 1e-23),
    ".npz": zipped({"image.npy": lying_npy("(8, 8)", rest=image(0).tobytes())}),
    ".fits": fits_bytes(),
}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(SEEDS)), st.data())
def test_any_damage_gives_an_image_or_a_sentence(suffix: str, data: st.DataObject) -> None:
    damaged = bytearray(SEEDS[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.none(), st.integers(0, len(damaged))))
    with contextlib.suppress(BadFile):  # and nothing else
        reading = parse(bytes(damaged[:end]), suffix)
        assert isinstance(reading, Reading)
        assert np.isfinite(reading.image).all()


_PACK = """
import sys, time
from lensdist.data.packing.pack import pack
slow = lambda what, done, of: time.sleep(0.05) if what == "packed" else None
if __name__ == "__main__":
    pack(sys.argv[1], sys.argv[2], jobs=2, progress=slow)
"""


def test_a_killed_pack_leaves_no_set_and_no_process(tmp_path: Path) -> None:
    src = data_files.model_ii(tmp_path / "src", n=40)
    script = tmp_path / "script.py"
    script.write_text(_PACK)
    words = [sys.executable, str(script), str(src), str(tmp_path / "out")]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": os.getcwd()})
    try:
        # Killed while samples are being written: the staging folder exists, the set does not.
        until(lambda: list(tmp_path.glob(".out.*.tmp/images.npy")))
        _, *workers = children(process.pid)
        assert workers
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    manifest, _ = pack(src, tmp_path / "out")
    assert manifest.count == 120
    assert not list(tmp_path.glob(".out.*"))  # what the killed one left is gone


_FULL = """
import resource, sys
sys.dont_write_bytecode = True  # Python would cut its own files short
from lensdist.data.packing.pack import pack
from lensdist.utils.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # a disk that is full after 8 kB
try:
    pack(sys.argv[1], sys.argv[2])
except RunError as error:
    print(error)
"""


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    src = data_files.model_ii(tmp_path / "src", n=40)
    words = [sys.executable, "-c", _FULL, str(src), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_names_that_no_terminal_should_see_are_packed_and_reported(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff\x1b[2J")
    folder.mkdir()
    for i in range(12):
        np.save(folder / os.fsdecode(b"%d\xfe\n\x1b.npy" % i), image(i))
    np.save(folder / os.fsdecode(b"\x1b\xfe.npy"), np.zeros((8, 8)))
    manifest, report = pack(folder, tmp_path / "out", PackOptions(max_bad=0.1))
    assert manifest.count == 12
    assert report.top_reasons().isprintable()
    assert manifest.model_dump_json().isascii()
    rows = (tmp_path / "out" / "files.jsonl").read_text().splitlines()
    assert len(rows) == 12
    assert json.loads(rows[3])["name"] in os.listdir(folder)


def test_a_reader_that_is_killed_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    src = data_files.model_ii(tmp_path / "src", n=40)

    def kill(what: str, done: int, of: int) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    with pytest.raises(RunError, match="--jobs 1"):
        pack(src, tmp_path / "out", jobs=2, progress=kill)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_reading_hostile_files_needs_little_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (lying_npy("(100000, 100000)"), opcodes(b"\x8e" + b"\xff" * 7 + b"\x0fx")):
        with pytest.raises(BadFile):
            parse(data, ".npy")
    save_axion(tmp_path / "a.npy", image(0), 1e-23)
    parse((tmp_path / "a.npy").read_bytes(), ".npy")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
