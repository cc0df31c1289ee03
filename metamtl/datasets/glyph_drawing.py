"""Draw the letters of `Glyphs` with the DejaVu fonts that are part of matplotlib."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1  # version of the images: increase it with any change that alters them
SIZE = 28  # height and width of an image, in pixels
EXAMPLES = 20  # images per class
FEWEST_FACES = 4

CASES = ("none", "lower", "upper")
WEIGHTS = ("regular", "bold")
SLANTS = ("upright", "slanted")
FAMILIES = ("sans", "mono", "serif")

_OVERSAMPLING = 4  # letters are transformed at this multiple of the size, then downsampled
_EM = 88  # font size at the large scale; a capital is then 16 pixels high in the image
_LONGEST = 19 * _OVERSAMPLING  # longer letters are scaled down to this length
_SHIFT, _TURN, _SCALE = 2.5, 12.0, (0.85, 1.1)  # pixels, degrees, factor
_SAME = 0.02  # images are equal if they differ in at most this fraction of their ink

# Scripts whose name is not the first word of the Unicode names of their letters.
_SCRIPTS = {"CANADIAN": "Canadian syllabics", "OLD": "Old Italic", "ROMAN": "Latin", "TURNED": "Latin"}


class Face(NamedTuple):
    """A font file and its style: indices into `WEIGHTS`, `SLANTS`, `FAMILIES`."""

    file: str
    weight: int
    slant: int
    family: int


FACES = tuple(
    Face(f"DejaVu{family}{style}.ttf", weight, slant, number)
    for number, (family, slanted) in enumerate(
        [("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic")]
    )
    for style, weight, slant in [
        ("", 0, 0),
        ("-Bold", 1, 0),
        (f"-{slanted}", 0, 1),
        (f"-Bold{slanted}", 1, 1),
    ]
)

Picture = tuple[tuple[int, int], bytes]  # size and gray values of the bounding box at the large scale
Pictures = dict[int, dict[int, Picture]]  # code -> index into FACES -> picture


def draw() -> dict[str, np.ndarray]:
    """Draw all letters in all faces, which takes about 10 seconds.

    Returns:
        The arrays of `Glyphs`. For M images: `images` `[M, 28, 28]`, `uint8` (ink 255, background 0),
        `labels` `[M]`, and `weight`, `slant` and `family` `[M]`, indices into `WEIGHTS`, `SLANTS` and
        `FAMILIES`. For L codes, ordered by class: `codes` `[L]`, `names` `[L]`, `code_class` `[L]`,
        `script` `[L]`, an index into `script_names`, and `case` `[L]`, an index into `CASES`.

    Raises:
        ImportError: matplotlib or pillow is missing.
    """
    classes = list(_classes(_pictures()))
    codes = [code for members, _ in classes for code in members]
    script_names = sorted({script_of(code) for code in codes})
    examples = [_examples(members[0], pictures) for members, pictures in classes]
    faces = np.concatenate([order for order, _ in examples])
    styles = np.array([face[1:] for face in FACES], np.uint8)[faces]
    return {
        "images": np.concatenate([images for _, images in examples]),
        "labels": np.repeat(np.arange(len(classes), dtype=np.int32), EXAMPLES),
        "weight": styles[:, 0],
        "slant": styles[:, 1],
        "family": styles[:, 2],
        "codes": np.array(codes, np.int32),
        "names": np.array([unicodedata.name(chr(code)) for code in codes]),
        "code_class": np.repeat(
            np.arange(len(classes), dtype=np.int32), [len(members) for members, _ in classes]
        ),
        "script": np.array([script_names.index(script_of(code)) for code in codes], np.uint8),
        "case": np.array([CASES.index(case_of(code)) for code in codes], np.uint8),
        "script_names": np.array(script_names),
    }


def is_letter(code: int) -> bool:
    """Whether the code is an independent letter.

    Excludes styled variants of other letters (mathematical, fullwidth, superscript, ligatures, the joined
    forms of Arabic), which compatibility normalization replaces, and modifier letters, which are marks
    (primes, accents, lines).

    >>> is_letter(ord("A")), is_letter(ord("É")), is_letter(0xFF21), is_letter(0xFE91), is_letter(0x2B9)
    (True, True, False, False, False)
    """
    letter = chr(code)
    category = unicodedata.category(letter)
    return category in ("Lu", "Ll", "Lt", "Lo") and unicodedata.normalize("NFKC", letter) == letter


def script_of(code: int) -> str:
    """The script of a letter, from its Unicode name.

    >>> script_of(ord("Ж")), script_of(0x1401)
    ('Cyrillic', 'Canadian syllabics')
    """
    word = unicodedata.name(chr(code)).split()[0]
    return _SCRIPTS.get(word, word.title())


def case_of(code: int) -> str:
    """One of `CASES`; a titlecase letter counts as upper."""
    return {"Lu": "upper", "Lt": "upper", "Ll": "lower"}.get(unicodedata.category(chr(code)), "none")


def _pictures() -> Pictures:
    """Draw each letter in each face that has it, without letters in fewer than `FEWEST_FACES` faces."""
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError(
            f"drawing the glyphs requires matplotlib's fonts and pillow, but {error.name} is missing:"
            " pip install 'metamtl[glyphs]'."
        ) from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # Only letters in the character map of the face, so that no image shows the missing-glyph symbol.
    letters = [
        [c for c in FT2Font(str(folder / face.file)).get_charmap() if is_letter(c)] for face in FACES
    ]
    counts = Counter(code for codes in letters for code in codes)
    pictures: Pictures = defaultdict(dict)
    for number, (face, codes) in enumerate(zip(FACES, letters)):
        # The basic layout draws one glyph per code, independent of the libraries in the build of pillow.
        font = ImageFont.truetype(str(folder / face.file), _EM, layout_engine=ImageFont.Layout.BASIC)
        for code in codes:
            if counts[code] < FEWEST_FACES:
                continue
            left, top, right, bottom = font.getbbox(chr(code))
            image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
            ImageDraw.Draw(image).text((1 - left, 1 - top), chr(code), fill=255, font=font)
            box = image.getbbox()
            if box is not None:
                ink = image.crop(box)
                pictures[code][number] = (ink.size, ink.tobytes())
    return pictures


def _classes(pictures: Pictures) -> list[tuple[list[int], dict[int, Picture]]]:
    """Merge codes with equal pictures into classes; each class has its pictures, sorted by script and code.

    Two codes are one class if their pictures are equal in at least half of the faces that have both
    (Latin, Greek and Cyrillic A). If they are equal in fewer faces (Cyrillic te is a Latin m in Serif
    Italic only), only the lower code keeps the picture, so that no two classes share one.
    """
    equal = _alike(pictures)
    first = {code: code for code in pictures}

    def find(code: int) -> int:
        while first[code] != code:
            code = first[code]
        return code

    for (one, other), faces in sorted(equal.items()):
        if 2 * len(faces) >= len(pictures[one].keys() & pictures[other].keys()):
            low, high = sorted((find(one), find(other)))
            first[high] = low
    members: dict[int, list[int]] = defaultdict(list)
    for code in sorted(pictures):
        members[find(code)].append(code)
    removed: dict[int, set[int]] = defaultdict(set)
    for (one, other), faces in equal.items():
        if find(one) != find(other):
            removed[other] |= faces
    classes = []
    for code, codes in members.items():
        subset = {f: picture for f, picture in sorted(pictures[code].items()) if f not in removed[code]}
        if len(subset) >= FEWEST_FACES:
            classes.append((codes, subset))
    return sorted(classes, key=lambda c: (script_of(c[0][0]), c[0][0]))


def _alike(pictures: Pictures) -> dict[tuple[int, int], set[int]]:
    """Pairs of codes, the lower first, and the faces in which their pictures are equal."""
    from PIL import Image

    faces: dict[tuple[int, int], set[int]] = defaultdict(set)
    for face in range(len(FACES)):
        codes = np.array([code for code in sorted(pictures) if face in pictures[code]])
        inks = [pictures[code][face] for code in codes.tolist()]
        sizes = np.array([size for size, _ in inks])
        plain = np.stack([_placed(Image.frombytes("L", *ink)).ravel() for ink in inks]).astype(np.int16)
        total = plain.sum(1, dtype=np.int64)
        for i, code in enumerate(codes.tolist()):
            # Compare only pictures whose boxes differ by at most a pixel, which are few.
            near = i + 1 + np.flatnonzero((np.abs(sizes[i + 1 :] - sizes[i]) <= _OVERSAMPLING).all(1))
            distance = np.abs(plain[near] - plain[i]).sum(1)
            for other in codes[near[distance <= _SAME * np.maximum(total[near], total[i])]].tolist():
                faces[code, other].add(face)
    return faces


def _examples(code: int, pictures: dict[int, Picture]) -> tuple[np.ndarray, np.ndarray]:
    """The faces `[20]` and images `[20, 28, 28]` of one class."""
    from PIL import Image

    rng = np.random.default_rng(code)  # depends only on the class: other classes do not change its images
    # In random order: 20 is not a multiple of most numbers of faces, and the faces that are drawn once
    # more should not always be regular and upright.
    faces = np.resize(rng.permutation(list(pictures)), EXAMPLES)
    inks = {face: Image.frombytes("L", *picture) for face, picture in pictures.items()}
    images = [
        _placed(
            inks[face], rng.uniform(-_SHIFT, _SHIFT, 2), rng.uniform(-_TURN, _TURN), rng.uniform(*_SCALE)
        )
        for face in faces.tolist()
    ]
    return faces, np.stack(images)


def _placed(
    ink: Image, shift: np.ndarray | tuple[float, float] = (0.0, 0.0), turn: float = 0.0, scale: float = 1.0
) -> np.ndarray:
    """Place `ink` on an image `[28, 28]`; the center of its box is `shift` pixels from the image center."""
    from PIL import Image

    size = scale * min(1.0, _LONGEST / max(ink.size))
    side, angle = SIZE * _OVERSAMPLING, np.deg2rad(turn)
    # Pillow expects the inverse transform, from points of the output to points of `ink`.
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
    start = np.array(ink.size) / 2 - inverse @ (side / 2 + np.asarray(shift) * _OVERSAMPLING)
    data = (*inverse[0], start[0], *inverse[1], start[1])
    canvas = ink.transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return np.asarray(canvas.reduce(_OVERSAMPLING))
