"""What five-point alignment gives in NumPy and OpenCV, for tests/fixtures/align.

The transform is Umeyama's (1991), by a singular value decomposition and without reflections, as scikit-image's
SimilarityTransform.estimate computes it; the image is seen through it by cv2.warpAffine with its defaults (bilinear)
and a black border. To write the fixture anew:

    python3 -m venv venv && venv/bin/pip install numpy opencv-python-headless
    venv/bin/python tests/reference/align.py
"""

import json
from pathlib import Path

import cv2
import numpy as np

TARGET = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
OUT = Path(__file__).resolve().parent.parent / "fixtures" / "align"


def umeyama(points, goal):
    """The matrix [2, 3] of the least-squares similarity transform from points to goal, [N, 2] each."""
    count = len(points)
    from_mean, to_mean = points.mean(0), goal.mean(0)
    from_points, to_points = points - from_mean, goal - to_mean
    covariance = to_points.T @ from_points / count
    u, singular, vt = np.linalg.svd(covariance)
    signs = np.ones(2)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:
        signs[1] = -1
    rotation = u @ np.diag(signs) @ vt
    scale = singular @ signs / from_points.var(0).sum()
    return np.column_stack([scale * rotation, to_mean - scale * rotation @ from_mean])


def photo(height, width):
    """A smooth picture in colour: without edges, as OpenCV's rounding of positions shows at those."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    channels = [
        128 + 100 * np.sin(x / 19) * np.cos(y / 23),
        140 + 90 * np.cos((x + 2 * y) / 41),
        30 + 200 * np.exp(-((x - width / 2) ** 2 + (y - height / 2) ** 2) / 3000),
    ]
    return np.clip(np.round(np.stack(channels, -1)), 0, 255).astype(np.uint8)


def moved(scale, degrees, shift):
    """The target points under a similarity transform."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * TARGET @ rotation.T + shift


def main():
    random = np.random.default_rng(5)
    image = photo(140, 160)
    cases = {
        "frontal": (moved(1.05, 0, [20, 12]) + random.normal(0, 1.5, (5, 2)), 64),
        "turned": (moved(0.9, 33, [85, 0]) + random.normal(0, 2, (5, 2)), 64),
        "upside_down": (moved(0.8, 178, [120, 120]) + random.normal(0, 1, (5, 2)), 48),
        "small": (moved(0.35, -12, [50, 60]) + random.normal(0, 0.5, (5, 2)), 112),
        "at_the_border": (moved(1.1, -20, [-40, 40]) + random.normal(0, 2, (5, 2)), 48),
        "profile": (np.array([[60.5, 50], [63, 49], [81, 66], [66, 88.25], [67, 87]]), 48),
        "exchanged": (moved(1.0, 4, [25, 14])[[1, 0, 2, 4, 3]] + random.normal(0, 1, (5, 2)), 48),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(OUT / "photo.png"), image[:, :, ::-1])
    records = []
    for name, (points, side) in cases.items():
        points = np.round(points, 4)
        matrix = umeyama(points, TARGET * side / 112)
        aligned = cv2.warpAffine(image, matrix, (side, side), borderValue=0.0)
        file = f"{name}.png"
        cv2.imwrite(str(OUT / file), aligned[:, :, ::-1])
        records.append(
            {"name": name, "side": side, "points": points.tolist(), "matrix": matrix.tolist(), "aligned": file}
        )
    (OUT / "cases.json").write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
