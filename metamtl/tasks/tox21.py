"""Tox21: twelve toxicity assays of one molecule, many of them not measured."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..task import binary_accuracy, masked
from .glyphs import check_split
from .labelled import Labelled
from .prepared import Arrays, Dir, official, read_arrays, write_arrays
from .preprocess import chosen, parted, standardised, targets
from .scores import roc_auc

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
# From SMILES to the fingerprint's bits [1024] and the descriptors [10]; None for what is no molecule.
Describe = Callable[[str], tuple[np.ndarray, np.ndarray] | None]


class Tox21:
    """Is the molecule active in each of 12 assays? One input, twelve labels, a fifth of them missing.

    Tox21 Data Challenge 2014; Wu et al. 2018 (MoleculeNet), https://arxiv.org/abs/1703.00564. The input is
    `[n, 1034]`: the 1,024 bits of a Morgan fingerprint of radius 2, and ten descriptors (weight, log P,
    ...), standardised by the training molecules, where nothing is above 5 deviations. A label is 1., 0., or
    NaN where the assay was not measured; the loss is `masked`, the metric ROC-AUC of what was measured. An
    assay without a label in a batch is not in that batch.

    Splits: 80 % train, 10 % validation, 10 % test at random, as MoleculeNet recommends for this set;
    molecules with equal fingerprints (stereoisomers and salts) in one split.

    Args:
        tasks: the assays to keep.
        data_dir: the folder in which `tox21/tox21.npz` lies.
        device: where the tensors are kept and the episodes are made.

    Raises:
        FileNotFoundError, ValueError: on first use, the data is missing or damaged.

    >>> episodes = Tox21().split("train").sample(64, torch.Generator())  # doctest: +SKIP
    >>> episodes["NR-AR"].query.x.shape, episodes["NR-AR"].query.y.shape  # doctest: +SKIP
    (torch.Size([64, 1034]), torch.Size([64, 1]))
    """

    def __init__(
        self,
        *,
        tasks: Iterable[str] | None = None,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.tasks = chosen(tasks, ASSAYS)
        self.data_dir, self.device = data_dir, device

    def split(self, name: str) -> Labelled:
        """The molecules of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        at = self._parts[name]
        columns = {str(assay): i for i, assay in enumerate(self._arrays["task_names"])}
        return Labelled(
            self._x[at],
            {task: targets(self._arrays["y"][at, columns[task]], missing=-1) for task in self.tasks},
            loss=dict.fromkeys(self.tasks, masked(F.binary_cross_entropy_with_logits)),
            metrics={task: {"roc_auc": roc_auc, "accuracy": binary_accuracy} for task in self.tasks},
            outputs=dict.fromkeys(self.tasks, 1),
            device=self.device,
        )

    @cached_property
    def _arrays(self) -> Arrays:
        return read_arrays("tox21", FILE, NEEDED, self.data_dir)

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        same = np.unique(self._arrays["fingerprint_packed"], axis=0, return_inverse=True)[1].reshape(-1)
        return parted(same, (0.8, 0.1, 0.1))

    @cached_property
    def _x(self) -> Tensor:
        bits = np.unpackbits(self._arrays["fingerprint_packed"], axis=1, count=BITS)
        numbers, *_ = standardised(self._arrays["descriptors"].astype(np.float64), self._parts["train"])
        both = np.concatenate([bits, numbers.clip(-5, 5)], 1)
        return torch.from_numpy(both).to(torch.get_default_dtype())


def rdkit_features(smiles: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Fingerprint and descriptors by RDKit.

    Raises:
        ImportError: RDKit is missing.
    """
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import Descriptors, rdFingerprintGenerator
    except ImportError as error:
        raise ImportError(
            "the fingerprints of Tox21's molecules are made by RDKit, which is missing: pip install rdkit."
        ) from error
    RDLogger.DisableLog("rdApp.*")  # it writes of every molecule that it cannot read to the terminal
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return None
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=BITS)
    known = dict(Descriptors.descList)
    numbers = np.array([known[name](molecule) for name in DESCRIPTORS], np.float32)
    return generator.GetFingerprintAsNumPy(molecule).astype(bool), numbers


def prepare(source: Path, folder: Path, describe: Describe = rdkit_features) -> Path:
    """`tox21.npz` from the official `tox21.csv.gz`; molecules that cannot be read are left out.

    `describe` makes fingerprint and descriptors of a SMILES string.
    """
    (path,) = official(source, "tox21.csv.gz")
    rows, bits, numbers = [], [], []
    for row in csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())):
        if (described := describe(row["smiles"])) is not None:
            rows.append(row)
            bits.append(described[0])
            numbers.append(described[1])
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
