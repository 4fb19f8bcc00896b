"""SPADE: images of label maps."""

from dataclasses import dataclass, field
from pathlib import Path

from medgen.families.family import Family, OfficialFiles


@dataclass(frozen=True)
class OfficialOptions:
    """Settings that official files do not state, and the second file."""

    encoder: str | Path | None = field(default=None, metadata={"help": "*_net_E.pth of the style encoder"})
    num_upsamplings: int | None = field(default=None, metadata={"help": "4 few, 5 normal, 6 more, 7 most"})
    dont_care: bool = field(default=False, metadata={"help": "the last class is unknown"})
    instance_edges: bool = field(default=False, metadata={"help": "made with instances"})


FAMILY = Family(
    name="spade",
    title="SPADE",
    model="medgen.families.spade.generator:SPADEGenerator",
    stages=(
        "medgen.families.spade.modules:LabelMapModule",
        "medgen.families.spade.modules:SPADEModule",
    ),
    components="medgen.families.spade.convert:COMPONENTS",
    official=OfficialFiles(
        expects="a generator of the official SPADE code (latest_net_G.pth)",
        recognise="medgen.families.spade.official:is_official",
        convert="medgen.families.spade.official:convert_checkpoint",
        options=OfficialOptions,
        renamed={"doublings": "num_upsamplings"},
    ),
)
