"""The register: historic bugs of the field as one-line patches, each with the oracle that must notice it.

Ids are stable: never renumber, only append.  Those that are missing here belong to code that does not exist yet.
To add one: the exact line (without its indentation), what it becomes, and the narrowest test that is there for it.
"""

from tests.mutants.cache import CACHE
from tests.mutants.cache_codecs import CODECS
from tests.mutants.cache_threshold import THRESHOLD_CODEC
from tests.mutants.codistillation import CODISTILLATION
from tests.mutants.curriculum import CURRICULUM, PLACEMENT
from tests.mutants.data_and_files import DATA, EVALUATION, FILES
from tests.mutants.evaluation import NUMBERS
from tests.mutants.families import FAMILY
from tests.mutants.features import FEATURES
from tests.mutants.further import FURTHER
from tests.mutants.generation import GENERATION
from tests.mutants.generation_given import GIVEN_AND_LATER
from tests.mutants.generation_select import SELECTION
from tests.mutants.generation_teachers import GENERATION_TEACHERS
from tests.mutants.grey import GREY_BOX
from tests.mutants.input_files import INPUT
from tests.mutants.losses import DIVERGENCES, FUSED
from tests.mutants.mutant import Mutant
from tests.mutants.planning import PLANNING
from tests.mutants.quantised import QUANTISED
from tests.mutants.reach import REACH
from tests.mutants.reports import REPORTS
from tests.mutants.stored_targets import COMPILED_SAMPLED, STORED_TARGETS
from tests.mutants.students import MADE
from tests.mutants.training import COMPILED, LOOP, STEP
from tests.mutants.verbs import RUNS

STORED = (*STORED_TARGETS, *COMPILED_SAMPLED)
MUTANTS: tuple[Mutant, ...] = (
    *DIVERGENCES,
    *FUSED,
    *STORED,
    *STEP,
    *LOOP,
    *COMPILED,
    *CODISTILLATION,
    *DATA,
    *FILES,
    *INPUT,
    *CACHE,
    *CODECS,
    *THRESHOLD_CODEC,
    *EVALUATION,
    *NUMBERS,
    *FURTHER,
    *FAMILY,
    *FEATURES,
    *GENERATION,
    *SELECTION,
    *GREY_BOX,
    *GIVEN_AND_LATER,
    *GENERATION_TEACHERS,
    *PLANNING,
    *REACH,
    *CURRICULUM,
    *PLACEMENT,
    *RUNS,
    *REPORTS,
    *MADE,
    *QUANTISED,
)
