#include "../../cells/peephole.h"
#include "../resident_grid.cuh"

FASTRNN_RESIDENT(fastrnn::Peephole, Tier::kGrid)
