"""Label maps changed on purpose, for `--why`: which of accuracy, sharpness and resolution do students miss?

A map here is dense: `[cells][classes]` logits, row by row, 0 for a class that the file does not keep.
"""

import random
import sys
import zipfile
from array import array

import maps


class Maps:
    """The annotator's map of one picture, the generator's, and what lies on each cell of either."""

    def __init__(self, made, true, classes):
        self.made_template, self.true_template = made, true
        logits, ids, self.side = maps.read(made)
        self.made = dense(logits, ids, classes)
        self.kept = len(logits)
        logits, ids, self.true_side = maps.read(true)
        self.true = dense(logits, ids, classes)
        self.true_kept = len(logits)
        # Random changes are a function of the picture alone.
        self.rng = random.Random(f"{true.parent.name}/{true.name}")

    def at(self, cell):
        """The generator's cell under the middle of the annotator's."""
        row, column = divmod(cell, self.side)
        inner = [int((place + 0.5) / self.side * self.true_side) for place in (row, column)]
        return inner[0] * self.true_side + inner[1]

    def object_at(self, cell):
        """Class of the object on a cell of the annotator's map, or None."""
        scores = self.true[self.at(cell)]
        best = max(scores)
        return scores.index(best) if best > maps.PRESENT else None


def true(picture, _):
    return picture.true


def coarse(picture, _):
    """The generator's map in the annotator's cells: in each the mean of the area that it covers."""
    ratio = picture.true_side / picture.side
    weights = []  # of rows, and so of columns too: pairs of a fine one and its overlap with a coarse one
    for place in range(picture.side):
        begin, end = place * ratio, (place + 1) * ratio
        overlaps = [(fine, min(end, fine + 1) - max(begin, fine)) for fine in range(picture.true_side)]
        weights.append([(fine, part / ratio) for fine, part in overlaps if part > 1e-9])
    cells = []
    for row in weights:
        for column in weights:
            sums = [0.0] * len(picture.true[0])
            for y, by in row:
                for x, bx in column:
                    for index, score in enumerate(picture.true[y * picture.true_side + x]):
                        sums[index] += by * bx * score
            cells.append(sums)
    return cells


def wrong_objects(picture, found):
    """The generator's map, wrong about as many objects as the annotator about cells: the class of such an object
    changes places with another everywhere."""
    cells = [list(scores) for scores in picture.true]
    objects = sorted({scores.index(max(scores)) for scores in cells if max(scores) > maps.PRESENT})
    for index in objects:
        if picture.rng.random() < 1.0 - found["object_cells_right"]:
            other = picture.rng.choice([i for i in range(len(cells[0])) if i not in objects])
            for scores in cells:
                scores[index], scores[other] = scores[other], scores[index]
    return cells


def wrong_cells(picture, found):
    """The same share of wrong cells, but each for itself."""
    cells = [list(scores) for scores in picture.true]
    for scores in cells:
        if max(scores) > maps.PRESENT and picture.rng.random() < 1.0 - found["object_cells_right"]:
            index = scores.index(max(scores))
            other = picture.rng.choice([i for i in range(len(scores)) if i != index])
            scores[index], scores[other] = scores[other], scores[index]
    return cells


def flat(picture, found):
    """The generator's map, as flat as the annotator's."""
    return scaled(picture.true, found["flatten"])


def made(picture, _):
    return picture.made


def made_right(picture, _):
    """The annotator's map put right: where it misses the object on a cell, its best class and the object's change
    places. Its scale, its cells and what it says of the background stay."""
    cells = [list(scores) for scores in picture.made]
    for cell, scores in enumerate(cells):
        truth = picture.object_at(cell)
        if truth is not None:
            best = scores.index(max(scores))
            scores[best], scores[truth] = scores[truth], scores[best]
    return cells


def made_muted(picture, _):
    """The annotator's map, silent on the cells that lie on no object."""
    return [
        scores if picture.object_at(cell) is not None else [0.0] * len(scores)
        for cell, scores in enumerate(picture.made)
    ]


def made_scaled(picture, found):
    """The annotator's map, as sharp as the generator's."""
    return scaled(picture.made, found["sharpen"])


# Name, title, change, and whether it has the cells of the annotator.
STUDIES = [
    ("true", "the generator's maps", true, False),
    ("true-coarse", "… in the annotator's cells", coarse, True),
    ("true-flat", "… as flat as the annotator's", flat, False),
    ("true-wrong-cells", "… wrong in as many cells, at random", wrong_cells, False),
    ("true-wrong-objects", "… wrong about as many objects", wrong_objects, False),
    ("made", "the annotator's maps", made, True),
    ("made-scaled", "… as sharp as the generator's", made_scaled, True),
    ("made-muted", "… silent where no object lies", made_muted, True),
    ("made-right", "… right where an object lies", made_right, True),
]


def write_all(change, annotators_cells, made_maps, true_maps, out, classes, found):
    """Changes all maps; the files keep the annotator's or the generator's form."""
    for path in sorted(made_maps.glob("*/*.pt")):
        picture = Maps(path, true_maps / path.parent.name / path.name, classes)
        (out / path.parent.name).mkdir(parents=True, exist_ok=True)
        template, kept = picture.true_template, picture.true_kept
        if annotators_cells:
            template, kept = picture.made_template, picture.kept
        write(out / path.parent.name / path.name, template, change(picture, found), kept)


def scales(made_maps, true_maps, classes, pictures=200):
    """Factors of the logits: `flatten` makes the generator's maps as flat as the annotator's, `sharpen` the
    reverse. Sharpness is the mean over pictures of the largest part of the target that the whole map gives."""
    made_means, true_means = [], []
    paths = sorted(made_maps.glob("*/*.pt"))
    for path in paths[:: max(1, len(paths) // pictures)]:
        picture = Maps(path, true_maps / path.parent.name / path.name, classes)
        for means, cells in [(made_means, picture.made), (true_means, picture.true)]:
            means.append([sum(scores) / len(cells) for scores in zip(*cells)])
    return {
        "flatten": fit(true_means, sharpness(made_means)),
        "sharpen": fit(made_means, sharpness(true_means)),
    }


def fit(cells, wanted):
    low, high = 0.0, 20.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if sharpness(scaled(cells, middle)) < wanted else (low, middle)
    return high


def sharpness(cells):
    return sum(max(maps.softmax(scores)) for scores in cells) / len(cells)


def scaled(cells, factor):
    return [[factor * score for score in scores] for scores in cells]


def dense(logits, ids, classes):
    cells = [[0.0] * classes for _ in logits[0]]
    for line, names in zip(logits, ids):
        for scores, logit, index in zip(cells, line, names):
            scores[int(index)] = logit
    return cells


def write(path, template, cells, kept):
    """A file like `template` with these scores, of which each cell keeps the `kept` highest."""
    ranks = [sorted(range(len(scores)), key=lambda index: -scores[index])[:kept] for scores in cells]
    values = array("f", (scores[rank[k]] for k in range(kept) for scores, rank in zip(cells, ranks)))
    values.extend(float(rank[k]) for k in range(kept) for rank in ranks)
    if sys.byteorder != "little":
        values.byteswap()
    with zipfile.ZipFile(template) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, values.tobytes() if entry.filename.endswith("/data/0") else old.read(entry))
