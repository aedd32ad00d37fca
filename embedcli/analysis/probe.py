"""What instructions do to a model: the same texts with and without, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from embedcli import encoder
from embedcli.analysis.queries import embed_with
from embedcli.config import RunOptions
from embedcli.errors import ConfigurationError, DataError
from embedcli.models.request import ModelRequest
from embedcli.models.resolve import resolve
from embedcli.models.spec import ModelSpec
from embedcli.recipe import BY_OPTION
from embedcli.templates import Field, Template

Floats = npt.NDArray[np.float64]
BARE = "no instruction"


@dataclass(frozen=True)
class Probed:
    """Texts to look at.

    labels: what each is, if that is known; pairs: the numbers of texts that mean the same.
    """

    texts: list[str]
    labels: list[str] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """The texts under one instruction.

    cosines: [n, n]; points: [n, 2], the vectors less their mean, projected on their two leading
    singular directions; shares: of the variance, for these two. moved: [n], 1 - the cosine with the
    same text's vector without instruction. partners: of each side's texts, the share whose nearest
    on the other side is the partner; None without pairs. same_label: the share of texts whose
    nearest other has the same label; None without labels.
    """

    name: str
    template: str
    cosines: Floats
    points: Floats
    shares: tuple[float, float]
    moved: Floats
    partners: tuple[float, float] | None = None
    same_label: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return all of it."""
        return {
            "instruction": self.name,
            "template": self.template,
            "cosines": np.round(self.cosines, 6).tolist(),
            "places": np.round(self.points, 6).tolist(),
            "shares_of_variance": [round(share, 6) for share in self.shares],
            "moved": np.round(self.moved, 6).tolist(),
            "nearest_is_partner": self.partners,
            "nearest_has_same_label": self.same_label,
        }


def probe(
    probed: Probed, request: ModelRequest, role: str, instructions: Sequence[str], run: RunOptions
) -> tuple[str, list[View]]:
    """Return the model's name; a view without instruction, then one for each. Loads the model once.

    Raises ConfigurationError, DataError where a text gives no vector or there are fewer than two.
    """
    if len(probed.texts) < 2:
        raise DataError("there must be two texts at least")
    spec, templates = _templates(request, role, instructions)
    model = encoder.load(spec, run)
    vectors = {
        name: _vectors(model, template, probed.texts) for name, template in templates.items()
    }
    bare = vectors[BARE]
    views = [
        _view(name, template.string, vectors[name], bare, probed)
        for name, template in templates.items()
    ]
    aligned = [replace(view, points=_align_signs(view.points, views[0].points)) for view in views]
    return spec.files.id, aligned


def _templates(
    request: ModelRequest, role: str, instructions: Sequence[str]
) -> tuple[ModelSpec, Mapping[str, Template]]:
    """Return for each instruction the role's template with that as its task; where it has none,
    with that before it.
    """
    bare = resolve(replace(request, template="{text}", task=None), role)
    templates = {BARE: bare.template}
    for instruction in instructions:
        try:
            templates[instruction] = resolve(replace(request, task=instruction), role).template
        except ConfigurationError:
            resolve(request, role)  # says what is wrong, if it isn't the task
            text = Field("text", None)
            templates[instruction] = Template((f"{instruction} ", text), role, BY_OPTION)
    return bare.spec, templates


def _vectors(model: encoder.Encoder, template: Template, texts: Sequence[str]) -> Floats:
    """Return vectors of norm 1, float64 [n, dim]."""
    vectors = embed_with(model, template, texts, {}).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _view(name: str, template: str, vectors: Floats, bare: Floats, probed: Probed) -> View:
    cosines = vectors @ vectors.T
    points, shares = _projected(vectors)
    return View(
        name=name,
        template=template,
        cosines=cosines,
        points=points,
        shares=shares,
        moved=np.maximum(0, 1 - (vectors * bare).sum(axis=1)),
        partners=_partners(cosines, probed.pairs) if probed.pairs else None,
        same_label=_same_label(cosines, probed.labels) if probed.labels else None,
    )


def _projected(vectors: Floats) -> tuple[Floats, tuple[float, float]]:
    centred = vectors - vectors.mean(axis=0)
    directions, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    dims = min(2, len(sizes))
    points[:, :dims] = directions[:, :dims] * sizes[:dims]
    variances = np.zeros(2)
    variances[:dims] = sizes[:dims] ** 2
    total = float((sizes**2).sum())
    if not total:  # all texts have the same vector
        return points, (0.0, 0.0)
    horizontal, vertical = variances / total
    return points, (float(horizontal), float(vertical))


def _align_signs(points: Floats, reference: Floats) -> Floats:
    """Choose the sign of each direction, which is arbitrary, so that texts lie as in the first view."""
    signs = np.sign((points * reference).sum(axis=0))
    return points * np.where(signs == 0, 1, signs)


def _partners(cosines: Floats, pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    first_texts = np.array([text for text, _ in pairs])
    second_texts = np.array([partner for _, partner in pairs])
    across = cosines[np.ix_(first_texts, second_texts)]  # [pairs, pairs]
    partner = np.arange(len(pairs))
    forwards = float((across.argmax(axis=1) == partner).mean())
    backwards = float((across.argmax(axis=0) == partner).mean())
    return forwards, backwards


def _same_label(cosines: Floats, labels: Sequence[str]) -> float:
    similarities = cosines - 3 * np.eye(len(cosines))  # not itself
    nearest = similarities.argmax(axis=1)
    return float(
        np.mean([labels[row] == labels[neighbour] for row, neighbour in enumerate(nearest)])
    )
