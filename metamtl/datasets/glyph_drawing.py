"""Draws the letters of `Glyphs` with the DejaVu fonts that matplotlib ships."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1  # of the pictures: raise it with any change that alters them
SIZE = 28  # pixels of a picture's side
EXAMPLES = 20  # pictures of a class
FEWEST_FACES = 4

CASES = ("none", "lower", "upper")
WEIGHTS = ("regular", "bold")
SLANTS = ("upright", "slanted")
FAMILIES = ("sans", "mono", "serif")

_OVERSAMPLING = 4  # letters are turned at this many times the size, then reduced
_EM = 88  # points of a letter at the large size; a capital is then 16 pixels high in the picture
_LONGEST = 19 * _OVERSAMPLING  # ink is shrunk to this length where it is longer
_SHIFT, _TURN, _SCALE = 2.5, 12.0, (0.85, 1.1)  # pixels, degrees, times
_SAME = 0.02  # pictures are the same where they differ in at most this part of their ink

# Names of scripts that are not the first word of the names of their letters.
_SCRIPTS = {"CANADIAN": "Canadian syllabics", "OLD": "Old Italic", "ROMAN": "Latin", "TURNED": "Latin"}


class Face(NamedTuple):
    """A font file and what it looks like: positions in `WEIGHTS`, `SLANTS`, `FAMILIES`."""

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

Picture = tuple[tuple[int, int], bytes]  # size and grey values of the ink's box at the large size
Pictures = dict[int, dict[int, Picture]]  # code -> position in FACES -> picture


def draw() -> dict[str, np.ndarray]:
    """Every letter in every face: takes some 10 seconds.

    Returns:
        The arrays that `Glyphs` keeps. Of M pictures: `images` `[M, 28, 28]` bytes (ink 255, paper 0),
        `labels` `[M]`, `weight`, `slant` and `family` `[M]`, positions in `WEIGHTS`, `SLANTS` and
        `FAMILIES`. Of L codes, class by class: `codes` `[L]`, `names` `[L]`, `code_class` `[L]`,
        `script` `[L]`, a position in `script_names`, and `case` `[L]`, a position in `CASES`.

    Raises:
        ImportError: matplotlib or pillow is missing.
    """
    classes = list(_classes(_pictures()))
    codes = [code for members, _ in classes for code in members]
    script_names = sorted({script_of(code) for code in codes})
    drawn = [_examples(members[0], pictures) for members, pictures in classes]
    faces = np.concatenate([order for order, _ in drawn])
    marks = np.array([face[1:] for face in FACES], np.uint8)[faces]
    return {
        "images": np.concatenate([images for _, images in drawn]),
        "labels": np.repeat(np.arange(len(classes), dtype=np.int32), EXAMPLES),
        "weight": marks[:, 0],
        "slant": marks[:, 1],
        "family": marks[:, 2],
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
    """Whether the code is a letter in its own right.

    Not so styled copies of other letters (mathematical, fullwidth, superscript, ligatures, the joined
    forms of Arabic), which compatibility normalisation replaces, nor modifier letters, which are marks
    (primes, accents, lines) rather than letters.

    >>> is_letter(ord("A")), is_letter(ord("É")), is_letter(0xFF21), is_letter(0xFE91), is_letter(0x2B9)
    (True, True, False, False, False)
    """
    letter = chr(code)
    category = unicodedata.category(letter)
    return category in ("Lu", "Ll", "Lt", "Lo") and unicodedata.normalize("NFKC", letter) == letter


def script_of(code: int) -> str:
    """The script of a letter, read from its Unicode name.

    >>> script_of(ord("Ж")), script_of(0x1401)
    ('Cyrillic', 'Canadian syllabics')
    """
    word = unicodedata.name(chr(code)).split()[0]
    return _SCRIPTS.get(word, word.title())


def case_of(code: int) -> str:
    """One of `CASES`; a titlecase letter counts as upper."""
    return {"Lu": "upper", "Lt": "upper", "Ll": "lower"}.get(unicodedata.category(chr(code)), "none")


def _pictures() -> Pictures:
    """Each letter in each face that has it, letters of fewer than `FEWEST_FACES` faces left out."""
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError(
            f"the glyphs are drawn with matplotlib's fonts by pillow, and {error.name} is missing:"
            " pip install 'metamtl[glyphs]'."
        ) from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # Only what a face's own table of characters lists: no picture is that of a missing glyph.
    known = [[c for c in FT2Font(str(folder / face.file)).get_charmap() if is_letter(c)] for face in FACES]
    counts = Counter(code for codes in known for code in codes)
    found: Pictures = defaultdict(dict)
    for number, (face, codes) in enumerate(zip(FACES, known)):
        # The basic layout draws one code as one glyph, whichever libraries pillow was built with.
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
                found[code][number] = (ink.size, ink.tobytes())
    return found


def _classes(pictures: Pictures) -> list[tuple[list[int], dict[int, Picture]]]:
    """Codes that look the same as one class; each class with its pictures, by script, then code.

    Two codes are one class where they look the same in at least half of the faces that have both
    (Latin, Greek and Cyrillic A). Where they do in fewer (Cyrillic te is a Latin m in Serif Italic
    only), the lower code keeps the picture, so that no two classes share one.
    """
    alike = _alike(pictures)
    first = {code: code for code in pictures}

    def find(code: int) -> int:
        while first[code] != code:
            code = first[code]
        return code

    for (one, other), faces in sorted(alike.items()):
        if 2 * len(faces) >= len(pictures[one].keys() & pictures[other].keys()):
            low, high = sorted((find(one), find(other)))
            first[high] = low
    members: dict[int, list[int]] = defaultdict(list)
    for code in sorted(pictures):
        members[find(code)].append(code)
    lost: dict[int, set[int]] = defaultdict(set)
    for (one, other), faces in alike.items():
        if find(one) != find(other):
            lost[other] |= faces
    classes = []
    for code, codes in members.items():
        own = {face: picture for face, picture in sorted(pictures[code].items()) if face not in lost[code]}
        if len(own) >= FEWEST_FACES:
            classes.append((codes, own))
    return sorted(classes, key=lambda c: (script_of(c[0][0]), c[0][0]))


def _alike(pictures: Pictures) -> dict[tuple[int, int], set[int]]:
    """Pairs of codes, the lower first, and the faces in which they look the same."""
    from PIL import Image

    faces: dict[tuple[int, int], set[int]] = defaultdict(set)
    for face in range(len(FACES)):
        codes = np.array([code for code in sorted(pictures) if face in pictures[code]])
        inks = [pictures[code][face] for code in codes.tolist()]
        sizes = np.array([size for size, _ in inks])
        plain = np.stack([_placed(Image.frombytes("L", *ink)).ravel() for ink in inks]).astype(np.int16)
        total = plain.sum(1, dtype=np.int64)
        for i, code in enumerate(codes.tolist()):
            # Boxes within a pixel of each other: few are, so few pictures have to be compared.
            near = i + 1 + np.flatnonzero((np.abs(sizes[i + 1 :] - sizes[i]) <= _OVERSAMPLING).all(1))
            apart = np.abs(plain[near] - plain[i]).sum(1)
            for other in codes[near[apart <= _SAME * np.maximum(total[near], total[i])]].tolist():
                faces[code, other].add(face)
    return faces


def _examples(code: int, pictures: dict[int, Picture]) -> tuple[np.ndarray, np.ndarray]:
    """The faces `[20]` and pictures `[20, 28, 28]` of one class."""
    from PIL import Image

    rng = np.random.default_rng(code)  # of the class alone: other classes do not change its pictures
    # In a random order: 20 is no multiple of most numbers of faces, and the ones drawn once more are
    # not to be always the regular and upright.
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
    """`ink` on paper `[28, 28]`, the middle of its box `shift` pixels from the middle of the paper."""
    from PIL import Image

    size = scale * min(1.0, _LONGEST / max(ink.size))
    side, angle = SIZE * _OVERSAMPLING, np.deg2rad(turn)
    # Pillow asks where in `ink` each point of the paper comes from: the inverse map.
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
    start = np.array(ink.size) / 2 - inverse @ (side / 2 + np.asarray(shift) * _OVERSAMPLING)
    data = (*inverse[0], start[0], *inverse[1], start[1])
    paper = ink.transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return np.asarray(paper.reduce(_OVERSAMPLING))
