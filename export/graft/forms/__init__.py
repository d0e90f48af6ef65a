"""How outputs are decoded: one module a form, each a frozen dataclass of what a head file says under ``decoding``."""

from export.graft.forms.centers import Centers
from export.graft.forms.distances import Distances
from export.graft.forms.form import Candidates, Form, Output
from export.graft.forms.maps import Maps
from export.graft.forms.priors import Priors
from export.graft.forms.rows import Rows

FORMS: dict[str, type] = {
    "distances": Distances,
    "priors": Priors,
    "centers": Centers,
    "rows": Rows,
    "maps": Maps,
}

__all__ = ["FORMS", "Candidates", "Form", "Output"]
