"""The protocol of IJB-B and IJB-C in NumPy and scikit-learn, on a small made-up set, for tests/fixtures/ijb.json.

Written from the formulas of the protocol, in f64 throughout. To write the fixture anew:

    python3 -m venv venv && venv/bin/pip install numpy scikit-learn
    venv/bin/python tests/reference/ijb.py
"""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
from sklearn.metrics import auc, roc_curve
from sklearn.preprocessing import normalize

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "ijb.json"
FARS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
FPIRS = [0.01, 0.1]


def template_features(features, templates, medias):
    """{template: feature}: means within a medium, added over the media, of unit length."""
    found = {}
    for template in np.unique(templates):
        of_template = templates == template
        total = np.zeros(features.shape[1])
        for medium in np.unique(medias[of_template]):
            total += features[of_template & (medias == medium)].mean(0)
        found[int(template)] = normalize(total[None])[0]
    return found


def verification(found, pairs):
    first, second, labels = pairs.T
    scores = np.array([found[a] @ found[b] for a, b in zip(first.tolist(), second.tolist())])
    fpr, tpr, _ = roc_curve(labels, scores)
    area = auc(fpr, tpr)
    fpr, tpr = fpr[::-1], tpr[::-1]
    nearest = [int(np.argmin(abs(fpr - far))) for far in FARS]
    return {
        "scores": scores[:20].tolist(),
        "auc": area,
        "tar": [float(tpr[at]) for at in nearest],
        "far_of_point": [float(fpr[at]) for at in nearest],
    }


def unique(roster):
    templates, at = np.unique([row[0] for row in roster], return_index=True)
    return templates.tolist(), [roster[i][1] for i in at]


def matrix(found, templates):
    return np.stack([found[template] for template in templates])


def alone(found, gallery, probes):
    """One gallery; the probes without a mate in it are the non-mated searches."""
    gallery_templates, people = unique(gallery)
    probe_templates, subjects = unique(probes)
    people, scores = np.array(people), matrix(found, probe_templates) @ matrix(found, gallery_templates).T
    counts, mates, others, alarms = [0, 0, 0], [], [], []
    for row, subject in zip(scores, subjects):
        if subject not in people:
            alarms.append(row.max())
            continue
        mate = int(np.flatnonzero(people == subject)[0])
        order = np.argsort(row)[::-1]
        for which, k in enumerate([1, 5, 10]):
            counts[which] += int(mate in order[:k])
        mates.append(row[mate])
        others.append(np.delete(row, mate).max())
    mates, others, alarms = np.array(mates), np.array(others), np.sort(alarms)[::-1]
    thresholds = [alarms[max(int(len(alarms) * fpir) - 1, 0)] for fpir in FPIRS]
    tpir = [float(((mates > others) & (mates > threshold)).sum() / len(mates)) for threshold in thresholds]
    return {
        "mated": len(mates),
        "counts": counts,
        "top": [count / len(mates) for count in counts],
        "thresholds": [float(threshold) for threshold in thresholds],
        "tpir": tpir,
    }


def together(found, galleries, probes):
    """All galleries as one; the threshold is taken from all non-matching scores."""
    gallery_templates, people = map(sum, zip(*map(unique, galleries)), ([], []))
    probe_templates, subjects = unique(probes)
    scores = matrix(found, probe_templates) @ matrix(found, gallery_templates).T
    mask = np.array(subjects)[:, None] == np.array(people)[None]
    assert (mask.sum(1) == 1).all()
    order = np.argsort(-scores, axis=1)
    mate = mask.argmax(1)
    top = [float(np.mean([m in row[:k] for m, row in zip(mate, order)])) for k in (1, 5, 10)]
    negatives, positives = np.sort(scores[~mask])[::-1], scores[mask]
    thresholds = [negatives[math.ceil(len(subjects) * fpir) - 1] for fpir in FPIRS]
    return {
        "top": top,
        "thresholds": [float(threshold) for threshold in thresholds],
        "tpir": [float((positives > threshold).sum() / len(subjects)) for threshold in thresholds],
    }


def main():
    random = np.random.default_rng(11)
    people, dimension = 30, 12
    centres = random.normal(0, 1, (people, dimension))
    # Per person a gallery template, two probes and one that is in pairs only.
    person_of = {100 + 7 * template: template % people for template in range(4 * people)}
    ids = list(person_of)
    rows, medium = [], 0
    for template, person in person_of.items():
        for _ in range(random.integers(1, 4)):
            medium += 1
            for _ in range(random.integers(1, 3)):
                noise = random.normal(0, 1.1, dimension)
                feature = random.uniform(0.5, 8) * (centres[person] + noise)
                rows.append((template, medium % 90, random.uniform(0.1, 1), feature))
    random.shuffle(rows)
    templates, medias = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    detector = np.round([row[2] for row in rows], 3)
    embeddings = np.round([row[3] for row in rows], 2)
    # Values that f32 has, so that both sides start from the same.
    detector, embeddings = (x.astype(np.float32).astype(np.float64) for x in (detector, embeddings))

    pairs = [(a, b, int(person_of[a] == person_of[b])) for a in ids for b in ids if a < b]
    same = [pair for pair in pairs if pair[2]]
    other = [pair for pair in pairs if not pair[2]]
    chosen = same + [other[at] for at in random.choice(len(other), 2000, replace=False)]
    # Some both ways round, which have equal scores.
    chosen += [(b, a, label) for a, b, label in chosen[:100]]
    random.shuffle(chosen)
    pairs = np.array(chosen)

    half = people // 2
    galleries = [[(ids[p], p) for p in range(half)], [(ids[p], p) for p in range(half, people)]]
    # A template is listed once for each image, and not in order.
    galleries[0] = galleries[0][::-1] + galleries[0][:4]
    probes = [(template, person_of[template]) for template in ids[people : 3 * people]]
    probes = probes + probes[5:9]

    results = []
    for norm, use_detector in product([True, False], [True, False]):
        features = embeddings if norm else normalize(embeddings)
        if use_detector:
            features = features * detector[:, None]
        found = template_features(features, templates, medias)
        parts = [alone(found, gallery, probes) for gallery in galleries]
        searches = sum(part["mated"] for part in parts)
        results.append(
            {
                "norm": norm,
                "detector_score": use_detector,
                "verification": verification(found, pairs),
                "together": together(found, galleries, probes),
                "galleries": parts,
                "mean_top": [sum(part["counts"][k] for part in parts) / searches for k in range(3)],
                "mean_tpir": [sum(part["tpir"][k] for part in parts) / 2 for k in range(2)],
            }
        )
    fixture = {
        "dimension": dimension,
        "embeddings": [round(value, 2) for value in embeddings.flatten().tolist()],
        "detector": [round(value, 3) for value in detector.tolist()],
        "templates": templates.tolist(),
        "medias": medias.tolist(),
        "pairs": pairs.tolist(),
        "galleries": galleries,
        "probes": probes,
        "results": results,
    }
    OUT.write_text(json.dumps(fixture, separators=(",", ":")) + "\n")
    for result in results:
        print(result["norm"], result["detector_score"], result["verification"]["tar"], result["together"]["top"],
              result["together"]["tpir"], result["mean_top"], result["mean_tpir"])


if __name__ == "__main__":
    main()
