"""What `synguide_jax.analysis.verdict` found, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = {
  "content": ("Content gap", "its images show a part of what real ones show"),
  "quality": (
    "Quality gap",
    "what its images show is distorted or labelled wrongly",
  ),
  "appearance": (
    "Appearance gap",
    "its images show the right things and look different",
  ),
  "none": ("No gap", "by these measures it is as good as held-out real images"),
  "unclear": (
    "Unclear",
    "what was measured does not add up to one of the gaps",
  ),
}

_REMEDIES = {
  "content": [
    "Sample more broadly: sample.guidance=0 and sample.truncation=0 in the "
    "generator's config.",
    "Train with Real and Pretrained Guidance, --config.method=guided, and "
    "choose --config.guidance.pg_weight on validation images.",
  ],
  "quality": [
    "Look at the images of highest loss: are they distorted, or is the label "
    "wrong?",
    "Keep images that a classifier of real ones agrees with: python -m "
    "synguide_jax.label --agree, or --relabel to replace labels.",
  ],
  "appearance": [
    "Compare how both were made, and make it alike: file format and "
    "compression, the size they were resized from, contrast, colours, noise.",
    "Methods that align the two sources are for this gap: "
    "--config.method=dann or adda.",
  ],
  "none": [
    "Use the images as they are; --config.method=balanced gives them half of "
    "each batch.",
  ],
  "unclear": [],
}


def headlines(source: str, gaps: Sequence[str]) -> list[str]:
  """Says what each gap is.

  Args:
    source: Name of the synthetic source.
    gaps: The gaps, the largest first; or "none", or "unclear".
  """
  return [
    f"{'Beside that: ' if number else ''}{_NAMES[gap][0]} of {source}: "
    f"{_NAMES[gap][1]}."
    for number, gap in enumerate(gaps)
  ]


def measured(
  source: str,
  accuracy: Mapping[str, float | None],
  own: Mapping[str, Any],
  real: Mapping[str, Any],
) -> list[str]:
  """Says the figures that the rules are about, those that there are.

  Args:
    source: Name of the synthetic source.
    accuracy: Shares: "real" on real images, "recognised" on synthetic ones, and
      "teacher", that of the synthetic-trained classifier on real ones.
    own: The source's entry of "fidelity" in analysis.json.
    real: That of held-out real images.
  """
  said = []
  figures = [accuracy[name] for name in ("real", "recognised", "teacher")]
  if None not in figures:
    on_real, on_synthetic, back = (f"{figure:.1%}" for figure in figures)
    said.append(
      f"Trained on real images, a classifier is right on {on_real} of real "
      f"test images and on {on_synthetic} of {source}; trained on {source}, on "
      f"{back} of real test images."
    )
  figures = [
    entry.get("overall", {}).get(name)
    for name in ("precision", "coverage", "recall")
    for entry in (own, real)
  ]
  if None not in figures:
    near, near_real, covered, covered_real, inside, inside_real = (
      f"{figure:.0%}" for figure in figures
    )
    said.append(
      f"{near} of its images are near real ones (held-out real images: "
      f"{near_real}); {covered} of real images have one of its near "
      f"({covered_real}), and {inside} are within the range of what it makes "
      f"({inside_real})."
    )
  return said


def remedies(
  gaps: Sequence[str], lowest: Sequence[str], missing: Sequence[str]
) -> list[str]:
  """Says what to try.

  Args:
    gaps: As of `headlines`.
    lowest: Names of the classes that are least covered.
    missing: What was not measured, in words.
  """
  told = [line for gap in gaps for line in _REMEDIES[gap]]
  if missing:
    told.append("Measure what is missing, and ask again.")
  elif "unclear" in gaps:
    told.append(
      "Ask again with more runs and test images, which make the thresholds "
      "finer, or with the features of another network, which see other things."
    )
  # Images that look different cover nothing, and real ones are no remedy.
  if lowest and ("content" in gaps or "unclear" in gaps):
    told.append(
      f"Add real images of the classes least covered: {', '.join(lowest)}."
    )
  return told
