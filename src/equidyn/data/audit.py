"""`equidyn data check FILE`: what a file of structures holds, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols

from equidyn.data.consistency import check_consistency
from equidyn.data.frames import LABELS, Frame, read_frames
from equidyn.data.references import References, least_squares
from equidyn.data.structure_checks import check_frame, findings, lone_atoms
from equidyn.ops.neighbors import neighbor_list

_MOST = 2000  # structures looked at, evenly spread


def audit(path: str | Path, cutoff: float) -> tuple[list[str], list[str]]:
    """Describe a file and list what is unlikely in it, one line each.

    Raises:
        InputError: the file cannot be read, or holds a structure that nothing can be learned from.
    """
    whole = read_frames(path)
    every = [whole[i] for i in np.linspace(0, len(whole) - 1, min(len(whole), _MOST)).round().astype(int)]
    for frame in every:
        check_frame(frame)
    isolated, frames = ([f for f in every if f.isolated is kind] for kind in (True, False))
    lines = [
        f"{path}: {len(whole)} structures" + (f", {len(every)} of them looked at" if len(every) < len(whole) else "")
    ]
    if not frames:
        return [*lines, "isolated atoms alone"], []
    lines += _contents(frames, len(isolated), cutoff)
    consistency = check_consistency(frames)
    lines.append(str(consistency))
    found = findings(frames, str(path)) + lone_atoms(frames, cutoff, str(path))
    if consistency.conclusive and not consistency.consistent:
        found.append(f"{path}: {consistency}")
    return lines, found


def _contents(frames: Sequence[Frame], isolated: int, cutoff: float) -> list[str]:
    sizes = [len(frame) for frame in frames]
    counts = Counter(int(z) for frame in frames for z in frame.numbers)
    elements = ", ".join(f"{chemical_symbols[z]} {count}" for z, count in sorted(counts.items()))
    periodic = sum(bool(frame.pbc.any()) for frame in frames)
    labels = ", ".join(f"{name} {sum(getattr(f, name) is not None for f in frames)}" for name in LABELS)
    lines = [
        f"{min(sizes)} to {max(sizes)} atoms; {elements}; {periodic} periodic, {isolated} isolated atoms",
        f"labels: {labels}",
    ]
    kinds = Counter(frame.config_type or "(none)" for frame in frames)
    lines.append("config types: " + ", ".join(f"{name} {count}" for name, count in kinds.items()))
    nearest, degrees = _distances(frames, cutoff)
    lines.append(f"closest atoms {nearest:.3g} Å apart; {np.mean(degrees):.1f} neighbours within {cutoff} Å on average")
    if any(frame.energy is not None for frame in frames):
        lines.append(str(References(least_squares(frames), "least squares")).replace("isolated-atom", "per-element"))
    forces = [frame.forces for frame in frames if frame.forces is not None]
    if forces:
        rms = np.sqrt(np.mean(np.square(np.concatenate(forces))))
        net = max(float(np.abs(force.sum(0)).max()) for force in forces)
        lines.append(f"forces: {rms:.4g} eV/Å root mean square, largest sum over a structure {net:.3g} eV/Å")
    return lines


def _distances(frames: Sequence[Frame], cutoff: float) -> tuple[float, np.ndarray]:
    """Smallest distance between atoms, and numbers of neighbours, over some of the structures."""
    nearest, degrees = float("inf"), []
    for frame in frames[:: max(1, len(frames) // 200)]:
        pos = torch.from_numpy(frame.pos)
        edges, shift = neighbor_list(pos, cutoff, torch.from_numpy(frame.cell), torch.from_numpy(frame.pbc))
        if edges.shape[1]:
            nearest = min(nearest, float((pos[edges[0]] + shift - pos[edges[1]]).norm(dim=1).min()))
        degrees.append(torch.bincount(edges[1], minlength=len(frame)).numpy())
    return nearest, np.concatenate(degrees)
