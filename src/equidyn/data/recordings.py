"""Recordings of a moving skeleton: the packed file, CMU's `.asf` with `.amc`, and `.bvh`.

The packed file is one `.npz` without pickles:

| array | shape | dtype | meaning |
|---|---|---|---|
| `positions` | [T, N, 3] | float32 or float64 | joints at all frames of all trials, one trial after the other |
| `trial_offsets` | [n + 1] | integer | trial k is `positions[trial_offsets[k]:trial_offsets[k + 1]]` |
| `bones` | [N - 1, 2] | integer | child and parent joint of each bone, a tree |
| `frame_time` | [] | float64 | seconds between two frames, if known |
| `{part}_trials` | [m] | integer | trials of the parts `train`, `val`, `test`, if the file says how to split |
| `{part}_starts` | [m, s] | integer | frames of those trials at which samples start; a prefix of each row is used |

Lengths are in the unit of the source. For `.asf` that is the skeleton's own: at CMU one unit is 0.0254 m / 0.45.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from equidyn.core.errors import InputError
from equidyn.core.extras import require
from equidyn.core.files import write_arrays

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
PARTS = ("train", "val", "test")


class Split(NamedTuple):
    """Trials of a part, and for each the frames [m, s] at which samples may start."""

    trials: Integers
    starts: Integers


@dataclass(frozen=True)
class Recordings:
    """Trials of one skeleton of N joints.

    Attributes:
        trials: positions [F_k, N, 3] of each trial.
        bones: [N - 1, 2] child and parent of each bone, a tree.
        frame_time: seconds between two frames, or None.
        split: trials and start frames of the parts, or empty.
    """

    trials: Sequence[Floats]
    bones: Integers
    frame_time: float | None = None
    split: Mapping[str, Split] = field(default_factory=dict)

    def check(self, where: object = None) -> None:
        """Refuse what the attributes above do not allow.

        Raises:
            InputError: no trials, a trial of one frame, NaN, bones that do not join all joints, a split that names
                trials or frames that are not there.
        """
        if not len(self.trials):
            raise InputError("no trials", where=where, expected="at least 1")
        joints = np.shape(self.trials[0])[1] if np.ndim(self.trials[0]) == 3 else 0
        for number, trial in enumerate(self.trials):
            place = f"trial {number}" if where is None else f"{where}, trial {number}"
            if trial.ndim != 3 or trial.shape[1:] != (joints, 3) or not joints:
                expected = f"[frames, {joints or 'joints'}, 3]"
                raise InputError("positions have the wrong shape", where=place, expected=expected, got=trial.shape)
            if trial.dtype not in (np.float32, np.float64):
                raise InputError("positions have the wrong dtype", where=place, expected="floats", got=trial.dtype)
            if len(trial) < 2:
                raise InputError("no velocity", where=place, expected="2 or more frames", got=len(trial))
            bad = np.argwhere(~np.isfinite(trial).all(-1))
            if len(bad):
                frame, joint = bad[0]
                raise InputError("positions hold NaN or infinity", where=place, got=f"frame {frame}, joint {joint}")
        _check_tree(self.bones, joints, where)
        if self.frame_time is not None and not 0 < self.frame_time < np.inf:
            raise InputError("time step", where=where, expected="more than 0 seconds", got=self.frame_time)
        for part, (trials, starts) in self.split.items():
            _check_split(part, trials, starts, [len(trial) for trial in self.trials], where)


def _check_tree(bones: Integers, joints: int, where: object) -> None:
    if bones.dtype.kind not in "iu" or bones.shape != (joints - 1, 2):
        expected = f"integers [{joints - 1}, 2], one bone for each of the {joints} joints but the root"
        raise InputError("wrong skeleton", where=where, expected=expected, got=f"{bones.dtype} {list(bones.shape)}")
    if bones.size and (bones.min() < 0 or bones.max() >= joints):
        got = int(bones.max()) if bones.max() >= joints else int(bones.min())
        raise InputError("a bone names a joint that is not there", where=where, expected=f"0 to {joints - 1}", got=got)
    parent = np.arange(joints)
    parent[bones[:, 0]] = bones[:, 1]
    if len(np.unique(bones[:, 0])) < joints - 1:
        raise InputError("wrong skeleton", where=where, expected="one parent for each joint but the root")
    for _ in range(joints.bit_length()):
        parent = parent[parent]
    if len(np.unique(parent)) > 1:
        raise InputError("wrong skeleton", where=where, expected="a tree", got="joints that hang on themselves")


def _check_split(part: str, trials: Integers, starts: Integers, frames: list[int], where: object) -> None:
    if trials.dtype.kind not in "iu" or starts.dtype.kind not in "iu" or starts.ndim != 2 or trials.ndim != 1:
        raise InputError(f"wrong split of {part}", where=where, expected="integers [m] and [m, s]")
    if len(trials) != len(starts) or not starts.size:
        got = f"{len(trials)} and {len(starts)}"
        raise InputError(f"wrong split of {part}", where=where, expected="a row of starts for each trial", got=got)
    if trials.min() < 0 or trials.max() >= len(frames):
        raise InputError(f"a trial of {part} that is not there", where=where, expected=f"0 to {len(frames) - 1}")
    if (starts < 0).any() or (starts >= np.array(frames)[trials][:, None]).any():
        raise InputError(f"a start of {part} outside its trial", where=where)


def read_recordings(path: str | os.PathLike[str]) -> Recordings:
    """Read a packed `.npz`, one `.bvh` or `.amc`, or a folder of `.bvh` or `.amc`, one trial each in order of names.

    An `.amc` needs the `.asf` of its skeleton beside it: of the same name, of its subject (`09.asf` for `09_01.amc`),
    or the only one there. Reading `.bvh` needs the extra `mocap` (pybvh).

    Raises:
        InputError: one line that says what is wrong with which file.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".amc", ".bvh"))
        if not files or len({p.suffix.lower() for p in files}) > 1:
            got = f"{len(files)} of both" if files else "none"
            raise InputError("recordings", where=path, expected="files .amc, or files .bvh", got=got)
    elif path.is_file():
        files = [path]
    else:
        raise InputError("no such file", where=path, expected="recordings (.npz, .amc, .bvh or a folder of them)")
    kind = files[0].suffix.lower()
    if kind not in (".amc", ".bvh"):
        recordings = _read_packed(path)
    else:
        parts = [_read_bvh(file) if kind == ".bvh" else _read_amc(file) for file in files]
        for file, other in zip(files, parts, strict=True):
            if not np.array_equal(other.bones, parts[0].bones):
                raise InputError("another skeleton", where=file, expected=f"that of {files[0].name}")
        recordings = Recordings([t for p in parts for t in p.trials], parts[0].bones, parts[0].frame_time)
    recordings.check(where=path)
    return recordings


def write_recordings(path: str | os.PathLike[str], recordings: Recordings) -> None:
    """Write the packed file, whole or not at all.

    Raises:
        InputError: the recordings fail `Recordings.check`, or the path cannot be written.
    """
    recordings.check(where=path)
    arrays: dict[str, Any] = {
        "positions": np.concatenate(recordings.trials),
        "trial_offsets": np.cumsum([0, *map(len, recordings.trials)]),
        "bones": recordings.bones,
    }
    if recordings.frame_time is not None:
        arrays["frame_time"] = np.float64(recordings.frame_time)
    for part, split in recordings.split.items():
        arrays[f"{part}_trials"], arrays[f"{part}_starts"] = split
    write_arrays(Path(path), arrays)


def _read_packed(path: Path) -> Recordings:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        what = "pickled array" if "allow_pickle" in str(error) else "truncated or corrupt file"
        expected = "packed recordings (.npz without pickles)"
        raise InputError(what, where=path, expected=expected, got=type(error).__name__) from None
    for name in ("positions", "trial_offsets", "bones"):
        if name not in arrays:
            expected = "positions, trial_offsets, bones"
            raise InputError(f"no array {name!r}", where=path, expected=expected, got=", ".join(arrays))
    positions, offsets = arrays["positions"], arrays["trial_offsets"]
    right = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) >= 2 and positions.ndim == 3
    if not right or offsets[0] != 0 or offsets[-1] != len(positions) or (np.diff(offsets.astype(np.int64)) < 0).any():
        expected = f"integers from 0 up to the {len(positions)} frames" if positions.ndim else "[T, N, 3] positions"
        raise InputError("wrong trial_offsets", where=path, expected=expected, got=f"{offsets.dtype} {offsets}")
    found = [part for part in PARTS if {f"{part}_trials", f"{part}_starts"} <= arrays.keys()]
    if found and len(found) < len(PARTS):
        raise InputError("half a split", where=path, expected="trials and starts of train, val and test", got=found)
    split = {part: Split(arrays[f"{part}_trials"], arrays[f"{part}_starts"]) for part in found}
    frame_time = float(arrays["frame_time"]) if "frame_time" in arrays else None
    return Recordings(np.split(positions, offsets[1:-1]), arrays["bones"], frame_time, split)


def _read_bvh(path: Path) -> Recordings:
    pybvh = require("pybvh", "mocap", "reading .bvh", where=path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a short file: NumPy warns, and the count of frames is refused below
            bvh = pybvh.read_bvh_file(path, world_up="+y")
            positions = np.asarray(bvh.node_positions(), dtype=np.float64)
    except Exception as error:  # whatever it meets in a broken file
        raise InputError("truncated or corrupt file", where=path, expected="a .bvh file", got=error) from None
    return Recordings([positions], np.array(bvh.node_edges, dtype=np.int64).reshape(-1, 2), float(bvh.frame_time))


# ---- Acclaim: the skeleton (.asf) and its motion (.amc) ------------------------------------------------------------

CMU_FRAME_TIME = 1 / 120  # the format does not say it
_TURNS, _SHIFTS = {"rx", "ry", "rz"}, {"tx", "ty", "tz"}


@dataclass
class _Bone:
    """A segment: the way from its start to its end at rest, its axes, and what its numbers in a motion mean."""

    direction: Floats
    axes: Rotation
    freedoms: tuple[str, ...]
    parent: int = 0


def _read_amc(path: Path) -> Recordings:
    skeleton = _skeleton_of(path)
    bones, degrees = _read_asf(skeleton)
    names = list(bones)
    values = _read_motion(path, {name: len(bones[name].freedoms) for name in names})
    root = dict(zip(bones["root"].freedoms, values["root"].T, strict=True))
    position = np.empty((len(values["root"]), len(names), 3))
    position[:, 0] = np.stack([root[f"t{axis}"] for axis in "xyz"], axis=-1)
    turns: list[Rotation] = []
    for number, (name, bone) in enumerate(bones.items()):
        turn = bone.axes
        letters = [freedom[1] for freedom in bone.freedoms if freedom[0] == "r"]
        if letters:  # about the bone's own axes, the first one first
            columns = [column for column, freedom in enumerate(bone.freedoms) if freedom[0] == "r"]
            turn = turn * Rotation.from_euler("".join(letters), values[name][:, columns], degrees=degrees)
        turn = turn * bone.axes.inv()
        turns.append(turns[bone.parent] * turn if number else turn)
        if number:
            position[:, number] = position[:, bone.parent] + turns[number].apply(bone.direction)
    links = [(number, bones[name].parent) for number, name in enumerate(names) if number]
    return Recordings([position], np.array(links, dtype=np.int64).reshape(-1, 2), CMU_FRAME_TIME)


def _skeleton_of(path: Path) -> Path:
    known = sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".asf")
    for stem in (path.stem, path.stem.split("_")[0]):
        for skeleton in known:
            if skeleton.stem == stem:
                return skeleton
    if len(known) != 1:
        raise InputError("no skeleton of the motion", where=path, expected=f"{path.stem}.asf beside it")
    return known[0]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Words of each line that is no comment, with its number."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError("cannot read", where=path, got=error.strerror or error) from None
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].replace("(", " ").replace(")", " ").split()
        if words:
            yield number, words


def _numbers(words: Sequence[str], count: int, path: Path, line: int) -> Floats:
    try:
        values = np.array(words, dtype=np.float64)
    except ValueError:
        values = np.zeros(0)
    if len(values) != count or not np.isfinite(values).all():
        got = " ".join(words) or "none"
        raise InputError("numbers", where=f"{path}, line {line}", expected=f"{count} finite ones", got=got)
    return values


def _read_asf(path: Path) -> tuple[dict[str, _Bone], bool]:
    """Bones by name, parents before children and the root first, and whether angles are in degrees."""
    raw: dict[str, dict[str, tuple[int, list[str]]]] = {}
    root: dict[str, tuple[int, list[str]]] = {"name": (0, ["root"])}
    children: list[tuple[int, list[str]]] = []
    section, entry, degrees = "", root, True
    for line, (first, *rest) in _lines(path):
        if first.startswith(":"):
            section = first[1:].lower()
        elif section == "units" and first == "angle":
            degrees = rest[:1] != ["rad"]
        elif section == "root":
            root[first.lower()] = line, rest
        elif section == "bonedata" and first == "begin":
            entry = {}
        elif section == "bonedata" and first == "end":
            if len(entry.get("name", (0, []))[1]) != 1:
                raise InputError("a bone without a name", where=f"{path}, line {line}")
            raw[entry["name"][1][0]] = entry
        elif section == "bonedata":
            entry[first] = line, rest
        elif section == "hierarchy" and first not in ("begin", "end"):
            children.append((line, [first, *rest]))
    if not root.keys() >= {"order", "axis"} or not raw or not children:
        raise InputError("not a skeleton", where=path, expected="an .asf with :root, :bonedata and :hierarchy")
    bones = {"root": _root(root, degrees, path)}
    for line, (parent, *names) in children:
        if parent not in bones:
            raise InputError("a bone before its parent", where=f"{path}, line {line}", got=parent)
        for name in names:
            if name not in raw or name in bones:
                what = "a bone that is not there" if name not in raw else "a bone with two parents"
                raise InputError(what, where=f"{path}, line {line}", got=name)
            bones[name] = _bone(raw[name], degrees, path, list(bones).index(parent))
    missing = sorted(raw.keys() - bones.keys())
    if missing:
        raise InputError("bones without a parent", where=f"{path}, :hierarchy", got=", ".join(missing))
    return _depth_first(bones), degrees


def _depth_first(bones: dict[str, _Bone]) -> dict[str, _Bone]:
    """The same bones, each limb in one piece, in the order in which the file names them."""
    names = list(bones)
    below: dict[str, list[str]] = {name: [] for name in names}
    for name in names[1:]:
        below[names[bones[name].parent]].append(name)
    ordered: dict[str, _Bone] = {}
    waiting = [("root", "root")]
    while waiting:
        name, parent = waiting.pop()
        bone = bones[name]
        bone.parent = list(ordered).index(parent) if ordered else 0
        ordered[name] = bone
        waiting += [(child, name) for child in reversed(below[name])]
    return ordered


def _axes(words: Sequence[str], order: str, degrees: bool, path: Path, line: int) -> Rotation:
    """Three angles about fixed axes, the first of the order first."""
    if sorted(order.lower()) != ["x", "y", "z"]:
        expected = "three angles and their order, as XYZ"
        raise InputError("axis", where=f"{path}, line {line}", expected=expected, got=order)
    return Rotation.from_euler(order.lower(), _numbers(words, 3, path, line), degrees=degrees)


def _root(entry: Mapping[str, tuple[int, list[str]]], degrees: bool, path: Path) -> _Bone:
    order = tuple(word.lower() for word in entry["order"][1])
    if sorted(order) != sorted(_TURNS | _SHIFTS):
        expected = "order TX TY TZ RX RY RZ, in any order"
        raise InputError("root", where=f"{path}, line {entry['order'][0]}", expected=expected, got=" ".join(order))
    line, tilt = entry.get("orientation", (0, ["0", "0", "0"]))
    return _Bone(np.zeros(3), _axes(tilt, "".join(entry["axis"][1]), degrees, path, line), order)


def _bone(entry: Mapping[str, tuple[int, list[str]]], degrees: bool, path: Path, parent: int) -> _Bone:
    where = f"{path}, bone {entry['name'][1][0]}"
    for key in ("direction", "length", "axis"):
        if key not in entry or not entry[key][1]:
            raise InputError(f"no {key}", where=where)
    line, words = entry["direction"]
    along = _numbers(words, 3, path, line)
    line, words = entry["length"]
    length = _numbers(words, 1, path, line)[0]
    norm = np.linalg.norm(along)
    if norm == 0 or length < 0:
        raise InputError("a bone without a direction or length", where=where)
    freedoms = tuple(word.lower() for word in entry.get("dof", (line, []))[1])
    if not set(freedoms) <= _TURNS or len(set(freedoms)) < len(freedoms):
        raise InputError("dof", where=where, expected="of rx, ry, rz", got=" ".join(freedoms))
    line, (*angles, order) = entry["axis"]
    return _Bone(along / norm * length, _axes(angles, order, degrees, path, line), freedoms, parent)


def _read_motion(path: Path, widths: Mapping[str, int]) -> dict[str, Floats]:
    """Numbers of each bone at each frame [F, width]."""
    moving = {name for name, width in widths.items() if width}
    frames: list[dict[str, Floats]] = []
    started = 0

    def finish(line: int) -> None:
        if frames and (missing := sorted(moving - frames[-1].keys())):
            where = f"{path}, frame at line {started}"
            raise InputError("missing joints", where=where, expected=", ".join(sorted(moving)), got=", ".join(missing))

    for line, (first, *rest) in _lines(path):
        if first.startswith(":"):
            continue
        if not rest and first.isdigit():
            finish(line)
            frames.append({})
            started = line
        elif first not in widths or not frames:
            what = "a bone that the skeleton does not have" if frames else "not a motion"
            raise InputError(what, where=f"{path}, line {line}", expected="the bones of its .asf", got=first)
        else:
            frames[-1][first] = _numbers(rest, widths[first], path, line)
    finish(0)
    if not frames:
        raise InputError("no frames", where=path, expected="an .amc with at least 2")
    return {name: np.array([frame[name] for frame in frames]) for name in moving}
