"""Recognition of labels: how well classifiers of real images recognise the requested labels in generated ones."""

from __future__ import annotations

from medgen.evaluation.checks.case import Case, Check, Findings
from medgen.evaluation.judges.label_readers import LabelReaders
from medgen.evaluation.scores import Meaning, Score, score
from medgen.evaluation.sets import FeatureSet
from medgen.evaluation.statistics.roc import roc_auc


def label_auc(case: Case) -> Findings:
    """Measure `label_aucs`, and warn of labels whose interval includes 0.5."""
    found = label_aucs(case.readers, case.generated, case.real)
    warnings = [
        f"{name.partition(':')[2] or 'the label'} is not recognised in generated images (AUC interval includes 0.5): "
        "the condition may be ignored"
        for name, item in found.items()
        if name.startswith("label_auc_generated") and item.low is not None and item.low <= 0.5
    ]
    return Findings(scores=list(found.values()), warnings=warnings)


def label_aucs(readers: LabelReaders, generated: FeatureSet, real: FeatureSet) -> dict[str, Score]:
    """Areas under the ROC curves of classifiers trained on real images, on generated and held-out real images.

    Held-out real images give the upper limit: a model can hardly show a label more clearly. The scores are
    ``label_auc_generated`` and ``label_auc_real`` with 95 % intervals; with more than two classes one of each per class
    or finding, its name after a colon. `Score.real` is the training set of the classifier. Classes with too few images
    in one of the sets are left out, with a warning.

    Raises:
        ValueError: If a set has no labels.
        ImportError: If scikit-learn is missing.
    """
    found = {}
    for position, suffix, reader in readers.usable(generated, real):
        for kind, part in (("generated", generated), ("real", real)):
            features, positive, patients = readers.examples(part, position)
            auc = roc_auc(reader.scores(features), positive, groups=patients)
            name = f"label_auc_{kind}{suffix}"
            found[name] = score(name, auc, part, readers.train, readers.network)
    return found


MEANINGS = {
    "label_auc": Meaning("labels", "AUC of labels", 1, "Whether a classifier of real images sees the requested label."),
}

CHECK = Check(run=label_auc, labels=True, packages=("sklearn",), meanings=MEANINGS)
