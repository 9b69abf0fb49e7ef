"""What to try next. A new prior is one file here and one line in `PRIORS`."""

from tfgen.priors.autoregressive import AutoregressivePrior
from tfgen.priors.base import Prior
from tfgen.priors.combined import CombinedPrior
from tfgen.priors.flexar import FlexARPrior
from tfgen.priors.frequency import FrequencyPrior
from tfgen.priors.retrieval import RetrievalPrior
from tfgen.priors.uniform import UniformPrior
from tfgen.priors.unigram import UnigramPrior

PRIORS: dict[str, type[Prior]] = {
    "uniform": UniformPrior,
    "unigram": UnigramPrior,
    "frequency": FrequencyPrior,
    "retrieval": RetrievalPrior,
    "autoregressive": AutoregressivePrior,
    "flexar": FlexARPrior,
}

__all__ = [
    "PRIORS",
    "AutoregressivePrior",
    "CombinedPrior",
    "FlexARPrior",
    "FrequencyPrior",
    "Prior",
    "RetrievalPrior",
    "UniformPrior",
    "UnigramPrior",
]
