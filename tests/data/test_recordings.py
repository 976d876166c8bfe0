"""Raw recordings: CMU's .asf with .amc against forward kinematics written out, .bvh by hand, broken files."""

import re

import numpy as np
import pytest

from equidyn.core.errors import InputError
from equidyn.data import Mocap
from equidyn.data.recordings import Recordings, Split, read_recordings, write_recordings

ASF = """# a small skeleton
:version 1.10
:name VICON
:units
  mass 1.0
  length 0.45
  angle deg
:documentation
   made for a test
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 90
:bonedata
  begin
     id 1
     name hip
     direction 0.6 -0.8 0.0
     length 2.5
     axis 10 20 30  XYZ
  end
  begin
     id 2
     name knee
     direction 0 -2 0
     length 7
     axis 0 0 20  XYZ
     dof rx rz
     limits (-160.0 20.0)
            (-70.0 70.0)
  end
  begin
     id 3
     name back
     direction 0 1 0
     length 4
     axis 5 -15 40 XYZ
     dof rx ry rz
     limits (-30.0 30.0)
            (-30.0 30.0)
            (-30.0 30.0)
  end
  begin
     id 4
     name toe
     direction 0 0 1
     length 1
     axis 90 0 0 XYZ
     dof rx
  end
:hierarchy
  begin
    root hip back
    hip knee
    knee toe
  end
"""

AMC = """#!OML:ASF
:FULLY-SPECIFIED
:DEGREES
1
root 1 2 3 10 20 30
knee 15 -25
back 4 5 6
toe 7
2
root 1.5 2 3.25 -40 50 60
knee -15 25
back 8 -9 10
toe -70
3
root 2 2 3.5 0 0 0
knee 0 0
back 0 0 0
toe 0
"""

BVH = """HIERARCHY
ROOT Hips
{
  OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Chest
  {
    OFFSET 0 2 0
    CHANNELS 3 Zrotation Xrotation Yrotation
    End Site
    {
      OFFSET 1 0 0
    }
  }
  JOINT Leg
  {
    OFFSET 0.5 -1 0
    CHANNELS 3 Zrotation Xrotation Yrotation
    End Site
    {
      OFFSET 0 -2 0
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.01
1 2 3 90 0 0 0 90 0 0 0 90
1 2 4 0 0 0 0 0 90 90 0 0
"""


@pytest.fixture
def cmu(tmp_path):
    (tmp_path / "35.asf").write_text(ASF)
    (tmp_path / "35_01.amc").write_text(AMC)
    return tmp_path


def turn(x, y, z):
    """About the fixed axes x, then y, then z, by degrees."""
    x, y, z = np.radians([x, y, z])
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return rz @ ry @ rx


def by_hand(root, knee, back, toe):
    """Joints in the order root, hip, knee, toe, back."""

    def local(axis, angles):
        return turn(*axis) @ turn(*angles) @ np.linalg.inv(turn(*axis))

    at = np.array(root[:3])
    whole = local((0, 0, 90), root[3:])
    hip = at + whole @ np.array([1.5, -2.0, 0.0])
    shank = whole @ local((0, 0, 20), (knee[0], 0, knee[1]))
    ankle = hip + shank @ np.array([0.0, -7.0, 0.0])
    tip = ankle + shank @ local((90, 0, 0), (toe[0], 0, 0)) @ np.array([0.0, 0.0, 1.0])
    chest = at + whole @ local((5, -15, 40), back) @ np.array([0.0, 4.0, 0.0])
    return np.array([at, hip, ankle, tip, chest])


def test_cmu_recording(cmu):
    for path in (cmu, cmu / "35_01.amc"):
        made = read_recordings(path)
        assert made.bones.tolist() == [[1, 0], [2, 1], [3, 2], [4, 0]]
        assert made.frame_time == pytest.approx(1 / 120)
        expected = [
            by_hand((1, 2, 3, 10, 20, 30), (15, -25), (4, 5, 6), (7,)),
            by_hand((1.5, 2, 3.25, -40, 50, 60), (-15, 25), (8, -9, 10), (-70,)),
            by_hand((2, 2, 3.5, 0, 0, 0), (0, 0), (0, 0, 0), (0,)),
        ]
        np.testing.assert_allclose(made.trials[0], expected, rtol=1e-13, atol=1e-13)
    lengths = np.linalg.norm(made.trials[0][:, made.bones[:, 0]] - made.trials[0][:, made.bones[:, 1]], axis=-1)
    np.testing.assert_allclose(lengths, [[2.5, 7, 1, 4]] * 3, rtol=1e-13)


def test_radians_and_other_orders(cmu):
    read = lambda: read_recordings(cmu).trials[0]  # noqa: E731
    before = read()
    words = ASF.replace("dof rx rz", "dof rz rx").replace("order TX TY TZ RX RY RZ", "order RX RY RZ TX TY TZ")
    (cmu / "35.asf").write_text(words)
    motion = AMC.replace("root 1 2 3 10 20 30", "root 10 20 30 1 2 3").replace("knee 15 -25", "knee -25 0")
    (cmu / "35_01.amc").write_text(motion)
    np.testing.assert_allclose(read()[0, :2], before[0, :2])
    (cmu / "35.asf").write_text(re.sub("angle deg", "angle rad", ASF).replace("0 0 90", "0 0 1.5707963267948966"))
    (cmu / "35_01.amc").write_text(AMC.replace("10 20 30", "0.17453292519943295 0.3490658503988659 0.5235987755982988"))
    np.testing.assert_allclose(read()[0, 0], before[0, 0])


def test_a_folder_of_trials_trains(cmu):
    rng = np.random.default_rng(0)
    for trial in range(3):
        frames = [AMC[: AMC.index("1\n")]]
        for frame in range(12):
            angles = rng.normal(size=9) + frame
            root, knee, back, toe = np.split(angles, [3, 5, 8])
            rows = ("root", [0, 3, frame, *root]), ("knee", knee), ("back", back), ("toe", toe)
            lines = (f"{name} {' '.join(f'{v:.6f}' for v in values)}" for name, values in rows)
            frames.append("\n".join([str(frame + 1), *lines]) + "\n")
        (cmu / f"35_0{trial + 1}.amc").write_text("".join(frames))
    data = Mocap(str(cmu), frames=(2, 4), train=5, val=3, test=2)
    assert [data.part(name).trajectory.shape[0] for name in ("train", "val", "test")] == [5, 3, 2]
    (cmu / "09.asf").write_text(ASF.replace("root hip back", "root hip\n hip back"))
    (cmu / "09_01.amc").write_text(AMC)
    with pytest.raises(InputError, match=r"another skeleton, in .*35_01.amc, expected that of 09_01.amc"):
        data.part("train")


def change(old, new):
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("35.asf", lambda t: t[:300], "not a skeleton"),
        ("35.asf", lambda t: "", "not a skeleton"),
        ("35.asf", change("name hip", ""), "a bone without a name, in .*35.asf, line 22"),
        ("35.asf", change("length 7", "length seven"), "numbers, in .*, line 27, expected 1 finite ones, got seven"),
        ("35.asf", change("length 7", ""), "no length, in .*bone knee"),
        ("35.asf", change("0 -2 0", "0 0 0"), "a bone without a direction or length, in .*bone knee"),
        ("35.asf", change("axis 90 0 0 XYZ", "axis 90 0 0 XXZ"), "three angles and their order, as XYZ, got XXZ"),
        ("35.asf", change("dof rx rz", "dof rx l"), "dof, in .*bone knee, expected of rx, ry, rz, got rx l"),
        ("35.asf", change("RZ\n", "RZ L\n"), "root, in .*expected order TX TY TZ RX RY RZ"),
        ("35.asf", change("knee toe", "knee tow"), "a bone that is not there, in .*, got tow"),
        ("35.asf", change("knee toe", "toe knee"), "a bone before its parent, in .*, got toe"),
        ("35.asf", change("knee toe", "knee back"), "a bone with two parents, in .*, got back"),
        ("35.asf", change("    knee toe\n", ""), "bones without a parent, in .*, got toe"),
        ("35_01.amc", change("toe 7\n", ""), "missing joints, in .*frame at line 4, expected back, .*, got toe"),
        ("35_01.amc", lambda t: t[:-7], "missing joints"),
        ("35_01.amc", change("toe 7", "tail 7"), "a bone that the skeleton does not have, in .*line 8.*got tail"),
        ("35_01.amc", change("toe 7", "toe 7 8"), "numbers, in .*line 8, expected 1 finite ones, got 7 8"),
        ("35_01.amc", change("toe 7", "toe nan"), "numbers, in .*line 8, expected 1 finite ones, got nan"),
        ("35_01.amc", lambda t: t[: t.index("2\nroot")], "no velocity, .*expected 2 or more frames, got 1"),
        ("35_01.amc", lambda t: "", "no frames"),
        ("35_01.amc", lambda t: "some text", "not a motion"),
    ],
)
def test_broken_cmu_files(cmu, file, edit, words):
    path = cmu / file
    path.write_text(edit(path.read_text()))
    with pytest.raises(InputError, match=words):
        read_recordings(cmu)


def test_a_motion_without_its_skeleton(cmu):
    (cmu / "35.asf").rename(cmu / "09.asf")
    assert len(read_recordings(cmu).trials) == 1  # the only one there
    (cmu / "10.asf").write_text(ASF)
    with pytest.raises(InputError, match=r"no skeleton of the motion, in .*, expected 35_01.asf beside it"):
        read_recordings(cmu)


def test_bvh(tmp_path):
    pytest.importorskip("pybvh")
    (tmp_path / "walk.bvh").write_text(BVH)
    made = read_recordings(tmp_path / "walk.bvh")
    assert made.frame_time == pytest.approx(0.01)
    assert made.bones.tolist() == [[1, 0], [2, 1], [3, 0], [4, 3]]
    # Root turned by 90 degrees about z: x becomes y and y becomes -x. Then a quarter turn of the chest about y.
    first = [[1, 2, 3], [-1, 2, 3], [-1, 3, 3], [2, 2.5, 3], [4, 2.5, 3]]
    second = [[1, 2, 4], [1, 4, 4], [1, 4, 3], [1.5, 1, 4], [3.5, 1, 4]]
    np.testing.assert_allclose(made.trials[0], [first, second], atol=1e-12)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t[:200], "truncated or corrupt file, in .*walk.bvh, expected a .bvh file"),
        (lambda t: t[:-45], "truncated or corrupt file"),
        (change("Frames: 2", "Frames: 9"), "truncated or corrupt file"),
        (change("Frame Time: 0.01", "Frame Time: 0"), "truncated or corrupt file"),
        (change("1 2 4 0", "1 nan 4 0"), "NaN or infinity, in .*trial 0, got frame 1, joint 0"),
        (lambda t: "", "truncated or corrupt file"),
        (lambda t: t.replace("Frames: 2", "Frames: 1").rsplit("\n", 2)[0] + "\n", "no velocity"),
    ],
)
def test_broken_bvh(edit, words, tmp_path):
    pytest.importorskip("pybvh")
    (tmp_path / "walk.bvh").write_text(edit(BVH))
    with pytest.raises(InputError, match=words):
        read_recordings(tmp_path / "walk.bvh")


def test_bvh_without_its_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pybvh", None)
    (tmp_path / "walk.bvh").write_text(BVH)
    with pytest.raises(InputError, match=r"reading .bvh needs pybvh, in .*, expected pip install 'equidyn\[mocap\]'"):
        read_recordings(tmp_path)


def test_packed_files_read_back(cmu):
    one = read_recordings(cmu)
    split = {part: Split(np.array([0]), np.array([[0, 1]])) for part in ("train", "val", "test")}
    packed = Recordings([one.trials[0], one.trials[0][:2]], one.bones, one.frame_time, split)
    write_recordings(cmu / "packed.npz", packed)
    again = read_recordings(cmu / "packed.npz")
    assert [np.array_equal(a, b) for a, b in zip(again.trials, packed.trials, strict=True)] == [True, True]
    assert np.array_equal(again.bones, one.bones)
    assert again.split["val"].starts.tolist() == [[0, 1]]
    with pytest.raises(InputError, match="cannot write"):
        write_recordings(cmu / "none" / "packed.npz", packed)
    with pytest.raises(InputError, match="no trials"):
        write_recordings(cmu / "packed.npz", Recordings([], one.bones))
