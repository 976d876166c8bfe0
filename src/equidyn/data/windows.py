"""Windows of one long trajectory: frames at which samples of training, validation and test start.

Ways to split a trajectory of F frames, for windows that end `last` frames after they start:

- "separate": training has the first 60 % of the frames, validation the next 20 %, test the last 20 %; no frame is in
  windows of two parts. What a test then measures is what the model says of times it has not seen.
- "ordered": the F - last starts are cut 60, 20, 20 % in order, as in the AdK experiment of the EGNO paper; windows of
  neighbouring parts overlap.
- "random": the draw of GMN and EGNO for MD17. 10,000 frames at both ends are left out, and each start is drawn by
  itself: every start of the test has some of the training close by in time.
- the path of an `.npz` with the starts `train`, `val` and `test`, of which prefixes are used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equidyn.core.errors import InputError
from equidyn.data.md_frames import Frames

PARTS = ("train", "val", "test")
_ENDS = 10_000
_MD17_SEED = 100


def md17_split(num_frames: int) -> dict[str, np.ndarray]:
    """The starts that GMN and EGNO draw for an MD17 trajectory, in their order."""
    count = num_frames - 1 - 2 * _ENDS
    random = np.random.RandomState(_MD17_SEED)
    left, split = np.arange(max(count, 0)), {}
    for name, share in zip(PARTS, (0.1, 0.05, 0.05), strict=True):
        drawn = random.choice(left, int(share * max(count, 0)), replace=False)
        left = np.setdiff1d(left, drawn, assume_unique=True)
        split[name] = drawn + _ENDS
    return split


def choose_starts(frames: Frames, name: str, count: int, split: str, steps: np.ndarray) -> np.ndarray:
    """Start frames of one part.

    Args:
        frames: the trajectory.
        name: "train", "val" or "test".
        count: number of starts; 0 for all. Of ordered starts evenly spaced ones are taken, of drawn ones the first.
        split: see above.
        steps: frames of a window, counted from its start.

    Raises:
        InputError: a trajectory that is too short, a split file that is wrong or names frames beyond the end, fewer
            starts than asked for.
    """
    last = int(max(steps))
    if count < 0:
        raise InputError(f"number of {name} samples", where=frames.where, expected="0 (all) or more", got=count)
    if last >= len(frames):
        expected = f"frames to predict up to {len(frames) - 1}"
        raise InputError("trajectory too short", where=frames.where, expected=expected, got=last)
    if split in ("separate", "ordered"):
        starts = _there(_in_order(frames, name, split, last), frames, steps)
        if count > len(starts):
            raise InputError(
                f"number of {name} samples", where=frames.where, expected=f"at most {len(starts)}", got=count
            )
        return starts[np.linspace(0, len(starts) - 1, count).round().astype(int)] if count else starts
    starts = md17_split(len(frames))[name] if split == "random" else _from_file(Path(split), name)
    if split == "random" and not len(starts):
        expected = f"more than {2 * _ENDS + 20} frames; or split: separate"
        raise InputError("trajectory too short", where=frames.where, expected=expected, got=len(frames))
    beyond = starts[starts + last >= len(frames)]
    if len(beyond):
        expected = f"starts up to {len(frames) - 1 - last} of the {len(frames)} frames of {frames.where}"
        raise InputError(f"a start of {name} beyond the trajectory", where=split, expected=expected, got=beyond[0])
    starts = _there(starts, frames, steps)
    if count > len(starts) or not len(starts):
        raise InputError(f"number of {name} samples", where=split, expected=f"at most {len(starts)}", got=count)
    return starts[:count] if count else starts


def _in_order(frames: Frames, name: str, split: str, last: int) -> np.ndarray:
    total = len(frames) if split == "separate" else len(frames) - last
    cuts = [0, int(0.6 * total), int(0.8 * total), total]
    part = PARTS.index(name)
    starts = np.arange(cuts[part], cuts[part + 1] - (last if split == "separate" else 0))
    if not len(starts):
        expected = f"more than {5 * last + 5} frames; or split: ordered" if split == "separate" else "more frames"
        raise InputError("trajectory too short", where=frames.where, expected=expected, got=len(frames))
    return starts


def _there(starts: np.ndarray, frames: Frames, steps: np.ndarray) -> np.ndarray:
    """Those starts whose windows are complete."""
    if frames.present.all():
        return starts
    kept = starts[frames.present[starts[:, None] + steps].all(1)]
    if not len(kept):
        what = "no window has all its frames"
        raise InputError(what, where=frames.where, expected="consecutive frames", got=f"{frames.present.sum()} of them")
    return kept


def _from_file(path: Path, name: str) -> np.ndarray:
    if not path.is_file():
        expected = "separate, ordered, random, or an .npz with train, val and test"
        raise InputError("no such split", where="data.split", expected=expected, got=path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            starts = archive[name]
    except Exception as error:
        raise InputError("cannot read the split", where=path, expected=f"an .npz with {name}", got=error) from None
    if starts.ndim != 1 or starts.dtype.kind not in "iu" or not len(starts) or starts.min() < 0:
        raise InputError(f"wrong starts of {name}", where=path, expected="frame numbers [S]", got=starts.dtype)
    return starts.astype(np.int64)
