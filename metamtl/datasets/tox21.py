"""Tox21: molecules and twelve toxicity assays."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .archives import gunzip
from .prepared import Arrays, Dir, official, read_arrays, write_arrays

FILE = "tox21.npz"
BITS = 1024
NEEDED = ("fingerprint_packed", "descriptors", "y", "task_names")
ASSAYS = (
    *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma"),
    *("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
)
DESCRIPTORS = (
    *("MolWt", "MolLogP", "TPSA", "NumHDonors", "NumHAcceptors", "NumRotatableBonds", "RingCount"),
    *("FractionCSP3", "HeavyAtomCount", "NumAromaticRings"),
)
# Maps SMILES to fingerprint bits [1024] and descriptors [10]; None if it is not a valid molecule.
Describe = Callable[[str], tuple[np.ndarray, np.ndarray] | None]


def load(data_dir: Dir = None) -> Arrays:
    """Load `fingerprint_packed` `[M, 128]`, `descriptors` `[M, 10]`, `y` `[M, 12]` (-1: not measured)."""
    return read_arrays("tox21", FILE, NEEDED, data_dir)


def rdkit_features(smiles: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Compute fingerprint and descriptors with RDKit; None if it cannot parse the molecule.

    Raises:
        ImportError: RDKit is missing.
    """
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import Descriptors, rdFingerprintGenerator
    except ImportError as error:
        raise ImportError(
            "computing the fingerprints of Tox21 requires RDKit, which is missing: pip install rdkit."
        ) from error
    RDLogger.DisableLog("rdApp.*")  # it logs every molecule that it cannot parse
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return None
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=BITS)
    functions = dict(Descriptors.descList)
    numbers = np.array([functions[name](molecule) for name in DESCRIPTORS], np.float32)
    return generator.GetFingerprintAsNumPy(molecule).astype(bool), numbers


def prepare(source: Path, folder: Path, describe: Describe = rdkit_features) -> Path:
    """Prepare `tox21.npz` from the official `tox21.csv.gz`, without molecules that cannot be parsed.

    `describe` computes fingerprint and descriptors of a SMILES string.
    """
    (path,) = official(source, "tox21.csv.gz")
    rows, bits, numbers = [], [], []
    for row in csv.DictReader(io.StringIO(gunzip(path).decode())):
        if (features := describe(row["smiles"])) is not None:
            rows.append(row)
            bits.append(features[0])
            numbers.append(features[1])
    arrays: Arrays = {
        "fingerprint_packed": np.packbits(np.array(bits, bool), axis=1),
        "descriptors": np.array(numbers, np.float32),
        "descriptor_names": np.array(DESCRIPTORS),
        "y": np.array([[int(float(row[a])) if row[a] else -1 for a in ASSAYS] for row in rows], np.int8),
        "task_names": np.array(ASSAYS),
        "smiles": np.array([row["smiles"].encode() for row in rows]),
        "mol_id": np.array([row["mol_id"] for row in rows]),
    }
    write_arrays(folder / FILE, arrays)
    return folder / FILE
