"""The `index` section of a run file: which index, and where it lives."""

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Device = Literal["cpu", "gpu"]

Kind = Literal[
    "exact",
    "flat",
    "auto",
    "sq8",
    "sq4",
    "rabitq",
    "ivf_flat",
    "ivf_sq8",
    "ivf_sq4",
    "ivf_rabitq",
    "ivf_rabitq2",
    "ivf_pq",
    "factory",
]

FACTORY = re.compile(
    r"(?:(?P<transform>PCAR?\d+|OPQ\d+(?:_\d+)?|RR\d+),)?"
    r"(?:IVF(?P<lists>[1-9]\d*),)?"
    r"(?P<codes>Flat|SQ(?:4|6|8|fp16|bf16)|PQ\d+(?:x\d+)?(?:np)?|RaBitQ[1-9]?)"
)
"""The part of FAISS's factory language that can be filled by rows in parallel, merged on disk and searched from
there."""


class IndexSettings(BaseModel):
    """The `index` section of a run file.

    Attributes:
        kind: `exact`: no index at all; every search reads the vectors where they lie, in one pass, and faiss isn't
            needed. `flat`, FAISS IndexFlatIP: every row in memory as float32, no approximation either. `auto`: `flat`
            where that fits into `memory`; where not, the first of some indexes, `ivf_rabitq2` or of wide rows
            `ivf_rabitq`, then larger ones, that is measured to find `recall`, and where none does, `exact`: see
            `index.approximate.fallback`. A kind that is named stays, and falling short is a warning. The others are
            approximate: codes propose rows and the stored rows decide. `sq8`, `sq4` (bits a coordinate) and `rabitq`
            (one bit) read the codes of every row; with `ivf_` in front only those of the cells nearest to the query;
            `ivf_pq`: product quantisation. `factory`: as `factory` says.
        factory: A FAISS factory string, for kind `factory` and no other: `[PCA…|PCAR…|OPQ…|RR…,][IVF…,]codes` with
            codes Flat, SQ4, SQ6, SQ8, SQfp16, SQbf16, PQ…, RaBitQ or RaBitQ2 to RaBitQ9.
        recall: The share of the true best rows that searches should find, at both ends; settings for it are chosen by
            measuring. 1 is for exact searches alone.
        memory: Bytes that the index may take. Unset: a bit a coordinate and row, but 64 to 640 bytes a row, or more of
            so few rows that they stay within 2 GiB; for further steps of `auto` twice and four times that; and for its
            choice of `flat` 2 GiB.
        reduce: Coordinates that rows are added up to before anything is trained. Unset, where rows are wider than
            4,096: those, and with RaBitQ's codes as many as `memory` lets be coded, without anything trained.
        probes: How many cells a search reads; unset, as measured.
        candidates: How many rows the codes propose at each end; unset, as measured.
        device: Where a flat index is searched. `gpu` needs faiss-gpu, a GPU, and the whole index in its memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "exact"
    factory: str | None = None
    recall: float = Field(default=0.95, gt=0, le=1)
    memory: int | None = Field(default=None, ge=1)
    reduce: int | None = Field(default=None, ge=1)
    probes: int | None = Field(default=None, ge=1)
    candidates: int | None = Field(default=None, ge=1)
    device: Device = "cpu"

    @model_validator(mode="after")
    def _exact_runs_on_the_cpu(self) -> Self:
        if self.kind == "exact" and self.device == "gpu":
            raise ValueError("kind: exact scans the stored rows on the CPU; for a GPU set kind: flat")
        if self.approximate and self.device == "gpu":
            raise ValueError(f"kind: {self.kind} is built and searched on the CPU; for a GPU set kind: flat")
        return self

    @model_validator(mode="after")
    def _factory_is_one_that_can_be_merged(self) -> Self:
        if self.kind == "factory" and self.factory is None:
            raise ValueError("kind: factory needs a FAISS factory string: set factory, such as PCAR384,IVF1024,RaBitQ2")
        if self.kind != "factory" and self.factory is not None:
            raise ValueError(f"factory is {self.factory!r} and kind is {self.kind}: set kind: factory, or leave it out")
        if self.factory is not None and not FACTORY.fullmatch(self.factory):
            raise ValueError(
                f"factory {self.factory!r} isn't one of [PCA…|PCAR…|OPQ…|RR…,][IVF…,]codes with codes Flat, SQ4, "
                "SQ6, SQ8, SQfp16, SQbf16, PQ…, RaBitQ or RaBitQ2 to 9. Only inverted lists can be built in parts, "
                "merged on disk and searched there; refining needs no word in it, since the stored rows always decide"
            )
        return self

    @model_validator(mode="after")
    def _only_approximate_searches_have_dials(self) -> Self:
        for name in ("reduce", "probes", "candidates"):
            value = getattr(self, name)
            if not self.approximate and value is not None:
                raise ValueError(f"{name} is {value} and kind is {self.kind}, which compares every row: leave it out")
        return self

    @model_validator(mode="after")
    def _perfect_recall_is_exact(self) -> Self:
        if self.recall == 1 and self.approximate and self.kind != "auto":
            raise ValueError(f"kind: {self.kind} can't promise a recall of 1; set exact or flat, or a lower recall")
        return self

    @property
    def approximate(self) -> bool:
        """Whether the index only proposes; of `auto`, whether it may."""
        return self.kind not in ("exact", "flat")
