"""How good label maps are, by what the generator of the pictures knows. Reported, never trained on."""

import math
import pickletools
import sys
import zipfile
from array import array

# A cell of the generator's map with a logit over this lies on the object.
PRESENT = 7.0


def read(path):
    """Logits and class ids, `[k][cells]` each, and the cells along a side, of a float32 `.pt` file in zip form."""
    with zipfile.ZipFile(path) as file:
        (name,) = [name for name in file.namelist() if name.endswith("/data/0")]
        values = array("f", file.read(name))
        operations = list(pickletools.genops(file.read(name.removesuffix("/data/0") + "/data.pkl")))
    if sys.byteorder != "little":
        values.byteswap()
    # After the storage's id: the offset into it, and the shape. Nothing is unpickled.
    names = [operation.name for operation, _, _ in operations]
    numbers = [value for _, value, _ in operations[names.index("BINPERSID") :] if isinstance(value, int)]
    _, pair, k, side, width = numbers[:5]
    if (pair, side) != (2, width) or len(values) != 2 * k * side * side:
        raise ValueError(f"{path}: {len(values)} values of shape {numbers[1:5]} are no square label map")
    plane = side * side
    lines = [values[i : i + plane] for i in range(0, len(values), plane)]
    return lines[:k], lines[k:], side


def quality(made, true, classes):
    """Shares, 0 to 1, over all maps under `made`, which have their true ones under `true`:

    - `object_cells_right`: of the cells that lie on an object, those whose best class is an object's there
    - `whole_right`: of the pictures, those whose global target has its maximum on an object
    - `whole_mass`: of the global targets' mass, that on the picture's objects; `whole_mass_named` that on the class
      of the folder; `whole_largest` the mean of the targets' largest part
    - `objects_found`: of the objects that a cell lies on, those that one of their cells names
    - `wrong_neighbour`: of the cells on an object that name none there, those that name another object of the picture
    - `named_by_class`: cells on objects that name a class, over cells on objects of that class; 1 where neither too often
      nor too seldom
    - `cell_largest`: mean of the largest part of a cell's softmax over all classes, on cells that lie on an object
    """
    folders = sorted(path.name for path in made.iterdir() if path.is_dir())
    sums = dict.fromkeys(["whole_right", "whole_mass", "whole_mass_named", "whole_largest"], 0.0)
    cells = right = neighbour = objects_met = objects_found = pictures = 0
    lying, named = [0] * classes, [0] * classes
    largest = logit = 0.0
    for index, folder in enumerate(folders):
        for path in sorted((made / folder).glob("*.pt")):
            logits, ids, side = read(path)
            true_logits, true_ids, true_side = read(true / folder / path.name)
            objects = {int(i) for l, c in zip(true_logits, true_ids) for v, i in zip(l, c) if v > PRESENT}
            target = softmax(mean_scores(logits, ids, range(side * side), classes))
            best = target.index(max(target))
            pictures += 1
            sums["whole_right"] += best in objects
            sums["whole_mass"] += sum(target[i] for i in objects)
            sums["whole_mass_named"] += target[index]
            sums["whole_largest"] += target[best]
            met, found = set(), set()
            for cell in range(side * side):
                row, column = divmod(cell, side)
                at = int((row + 0.5) / side * true_side) * true_side + int((column + 0.5) / side * true_side)
                here = {int(c[at]) for l, c in zip(true_logits, true_ids) if l[at] > PRESENT}
                if here:
                    scores = mean_scores(logits, ids, [cell], classes)
                    cells += 1
                    name = scores.index(max(scores))
                    right += name in here
                    neighbour += name in objects - here
                    named[name] += 1
                    for one in here:
                        lying[one] += 1
                    met |= here
                    found |= here & {name}
                    largest += max(softmax(scores))
                    logit += max(scores)
            objects_met += len(met)
            objects_found += len(found)
    means = {name: value / pictures for name, value in sums.items()}
    return means | {
        "pictures": pictures,
        "side": side,
        "object_cells_right": right / cells,
        "objects_found": objects_found / objects_met,
        "wrong_neighbour": neighbour / max(cells - right, 1),
        "named_by_class": [n / max(l, 1) for n, l in zip(named, lying)],
        "cell_largest": largest / cells,
        "cell_logit": logit / cells,
    }


def mean_scores(logits, ids, cells, classes):
    """Mean over cells of the scores of all classes; 0 where a class is not kept."""
    scores = [0.0] * classes
    for line, names in zip(logits, ids):
        for cell in cells:
            scores[int(names[cell])] += line[cell] / len(cells)
    return scores


def softmax(scores):
    top = max(scores)
    parts = [math.exp(score - top) for score in scores]
    return [part / sum(parts) for part in parts]
